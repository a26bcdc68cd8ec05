"""Compiles variants in a process of their own: ``python -m capgate.kernels.offline_child``, started by offline.py.

Reads a request (JSON) from standard input; for each of its jobs in order it prints lines of JSON whose keys are added to the
job's row. The line with the key ``compiled`` is the job's last.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from capgate import compat

from . import listing, resources
from .launch import ExampleCall


def main() -> None:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    # Compilers print to standard output what they like: it becomes standard error, and the rows get a channel of their own.
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    target = compat.capabilities(request["target"]).target
    for job in request["jobs"]:
        try:
            for row in answer(import_module(request["module"]), target, job, request["save"]):
                print(json.dumps(row, default=str), file=rows)
        except Exception as error:  # a compiler may fail in any way; the next job may not
            print(json.dumps({"compiled": False, "error": summary(error)}), file=rows)


def answer(module: Any, target: compat.Target, job: dict[str, Any], save: str | None) -> Iterator[dict[str, Any]]:
    """The parts of a job's row."""
    problem = module.example_problem(target, job["heads"], job["dim"], job["mode"], job["dtype"])
    step = next(step for step in module.operation.explain(problem, job["variant"]).steps if step.variant == job["variant"])
    yield {"accepted": step.accepted}
    if not step.accepted:
        yield {"compiled": False, "error": step.reason}
        return
    kernels = import_module(module.operation.variants[job["variant"]].load().__module__)
    if not hasattr(kernels, "prepare"):
        yield {"compiled": False, "error": "has no kernel to compile", "kernel": False}
        return
    if hasattr(kernels, "tuning"):
        yield {"tuning": kernels.tuning(target, problem.heads, problem.clean_logits)._asdict()}
    call = module.example_call(problem)
    launch = kernels.prepare(*call.arguments, **call.keywords)
    set_absent_gpu(target)
    with redirect_stdout(StringIO()) as log:
        began = time.perf_counter()
        compiled = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
        seconds = time.perf_counter() - began
    row = describe(compiled, target, call, log.getvalue())
    if save:
        row["files"] = write(Path(save), f"{job['variant']}.{job['mode']}", compiled, launch)
    yield {**row, "seconds": round(seconds, 3), "error": None, "compiled": True}


def set_absent_gpu(target: compat.Target) -> None:
    """Make Triton compile for a GPU that is not here, as if a driver had found it."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    arch = int(target.arch) if target.backend == "cuda" else target.arch

    class AbsentGpu:
        """As much of a driver as ``warmup`` asks for: Triton's own argument binder then finds divisibilities and constants."""

        def get_current_target(self) -> Any:
            return GPUTarget(target.backend, arch, target.warp_size)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int = 0) -> int:
            return 0

    driver.set_active(AbsentGpu())


def describe(compiled: Any, target: compat.Target, call: ExampleCall, log: str) -> dict[str, Any]:
    """A compiled kernel's figures, as the row's keys.

    log : what ptxas said
    """
    metadata = compiled.metadata
    if target.backend == "cuda":
        code = listing.read_sass(disassembled(compiled.asm["cubin"]))
        waves = resources.warps_of_ptx(compiled.asm["ptx"], metadata.num_warps)
        taken = resources.of_ptxas(
            log,
            target.arch,
            warps=waves,
            shared_bytes=metadata.shared,
            tensor_columns=getattr(metadata, "tmem_size", None) or 0,
            code_bytes=16 * len(code.instructions),
        )
    else:
        assembly = compiled.asm["amdgcn"]
        code = listing.read_amdgcn(assembly)
        waves = resources.waves_of_amdgcn(assembly)
        taken = resources.of_amdgcn(assembly, target.arch, metadata.shared)
    loop = listing.hot_loop(code, waves)
    hot = None
    if loop is not None:
        hot = loop._asdict()
        products = hot.pop("products")
        hot["keys"] = None if products is None else products / call.products
    return {**taken._asdict(), "hot_loop": hot, "matrix_instructions": listing.matrix_instructions(code)}


def disassembled(cubin: bytes) -> str:
    """The machine code as text, by the nvdisasm that Triton ships."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([knobs.nvidia.nvdisasm.path, "-c", file.name], check=True, capture_output=True, text=True).stdout


def write(folder: Path, stem: str, compiled: Any, launch: Any) -> list[str]:
    """Save assembly, TTGIR and the order of the arguments; returns the files."""
    signature = compiled.src.signature
    arguments = {
        "kernel": compiled.metadata.name,
        "num_warps": compiled.metadata.num_warps,
        "lds_bytes": compiled.metadata.shared,
        # What a launch passes, in order; what Triton appends (pointers to its scratch memory) is in the assembly's metadata.
        "arguments": [{"name": name, "type": kind} for name, kind in signature.items() if kind != "constexpr"],
        "constants": {
            **{name: value for name, value in zip(signature, launch.arguments, strict=False) if signature[name] == "constexpr"},
            **{name: value for name, value in launch.keywords.items() if name in signature},
        },
        "options": {name: value for name, value in launch.keywords.items() if name not in signature},
    }
    texts = {name: compiled.asm[name] for name in ("amdgcn", "ptx", "ttgir") if name in compiled.asm}
    texts["arguments.json"] = json.dumps(arguments, indent=2, default=str) + "\n"
    files = [folder / f"{stem}.{suffix}" for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    return [str(file) for file in files]


def summary(error: BaseException) -> str:
    """An error's type and last line: compilers put the source before the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


if __name__ == "__main__":
    main()
