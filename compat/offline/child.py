"""Compiles variants in a process of their own: ``python -m capgate.compat.offline.child``, started by :mod:`.jobs`."""

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from capgate import compat

from .._errors import summary
from . import disassembly as listing
from . import occupancy as resources
from .absent import set_absent_gpu
from .answers import Answer, serve

NVDISASM_TIMEOUT = 60  # seconds; it takes less than one


def main() -> None:
    """Answer the request on standard input."""
    serve(begin)


def begin(request: dict[str, Any]) -> Answer:
    """What answers the request's jobs."""
    target = compat.capabilities(request["target"]).target
    import_module(request["module"])  # where the operation is defined, installed or not
    operation = compat.operations()[request["operation"]]
    return lambda job: answer(operation, target, job, request["save"])


def answer(
    operation: compat.Operation[Any], target: compat.Target, job: dict[str, Any], save: str | None
) -> Iterator[dict[str, Any]]:
    """The parts of a job's row."""
    assert operation.examples is not None
    problem = operation.examples.problem(target, job["heads"], job["dim"], job["mode"], job["dtype"])
    step = next(step for step in operation.explain(problem, job["variant"]).steps if step.variant == job["variant"])
    yield {"accepted": step.accepted}
    if not step.accepted:
        yield {"compiled": False, "error": step.reason}
        return
    kernel = operation.load(operation.variants[job["variant"]])
    if not isinstance(kernel, compat.Kernel):
        yield {"compiled": False, "error": "has no kernel to compile", "kernel": False}
        return
    if kernel.tuning is not None:
        yield {"tuning": kernel.tuning(problem)._asdict()}
    call = operation.examples.call(problem)
    launches = kernel.prepare(problem, *call.operands, **call.options)
    if call.number >= len(launches):
        yield {"compiled": False, "error": f"mode: got {job['mode']!r}, a launch that the example's call does not make there"}
        return
    launch = launches[call.number]
    set_absent_gpu(target)
    with redirect_stdout(StringIO()) as log:
        began = time.perf_counter()
        compiled = launch.kernel.warmup(*launch.arguments, grid=launch.grid, **launch.keywords)
        seconds = time.perf_counter() - began
    yield {"seconds": round(seconds, 3)}
    row = {"error": None, **describe(compiled, target, call, log.getvalue())}
    if save:
        try:
            row["files"] = write(Path(save), job["stem"], compiled, launch)
        except OSError as error:
            row["error"] = f"compiled, and not saved: {summary(error)}"
    yield {**row, "compiled": True}


class UnreadableError(Exception):
    """Why something of a compiled kernel cannot be read, in words."""


# What the compilers always say, as far as it is known here, in the words for where they do not.
PTXAS_SAYS = {"vgprs": "registers", "spills": "spills", "scratch_bytes": "scratch"}
LLVM_SAYS = {"vgprs": "VGPRs", "sgprs": "SGPRs", "spills": "spills", "scratch_bytes": "scratch", "code_bytes": "code length"}


def describe(compiled: Any, target: compat.Target, call: compat.ExampleCall, log: str) -> dict[str, Any]:
    """A compiled kernel's figures, as the row's keys; one that cannot be read is None, and ``unread`` says why.

    log : what ptxas said
    """
    found: dict[str, Any] = {}
    unread: list[str] = []
    shared = getattr(compiled.metadata, "shared", None)
    code = waves = None
    with _reading("machine code", unread):
        code = machine_code(compiled, target)
        found["matrix_instructions"] = listing.matrix_instructions(code)
    with _reading("resources", unread):
        if target.backend == "cuda":
            waves = resources.warps_of_ptx(compiled.asm["ptx"], compiled.metadata.num_warps)
            taken = resources.of_ptxas(
                log,
                target.arch,
                warps=waves,
                shared_bytes=shared,
                tensor_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
                code_bytes=16 * len(code.instructions) if code else None,
            )
            source, says = "ptxas' log", PTXAS_SAYS
        else:
            waves = resources.waves_of_amdgcn(compiled.asm["amdgcn"])
            taken = resources.of_amdgcn(compiled.asm["amdgcn"], target.arch, shared)
            source, says = "assembly", LLVM_SAYS
        found |= taken._asdict()
        missing = ", ".join(words for key, words in says.items() if found[key] is None)
        if missing:
            raise UnreadableError(f"{source} does not say {missing}")
    if shared is None:
        unread.append("resources: metadata does not say how much shared memory")
    with _reading("hot loop", unread):
        if code and (loop := listing.hot_loop(code, waves)):
            hot = loop._asdict()
            products = hot.pop("products")
            found["hot_loop"] = {**hot, "keys": None if products is None else products / call.products}
    return {**found, "unread": unread}


@contextmanager
def _reading(what: str, unread: list[str]) -> Iterator[None]:
    """Readers know the compilers of today: what another one leaves out, or says otherwise, is unread, and no failed compile."""
    try:
        yield
    except Exception as error:
        unread.append(f"{what}: {error if isinstance(error, UnreadableError) else summary(error)}")


def machine_code(compiled: Any, target: compat.Target) -> listing.Listing:
    """All of a compiled kernel's instructions; raises UnreadableError where the text shows none, or lines that are unknown."""
    if target.backend == "cuda":
        source, code = "nvdisasm's text", listing.read_sass(disassembled(compiled.asm["cubin"]))
    else:
        source, code = "assembly", listing.read_amdgcn(compiled.asm["amdgcn"])
    if code.unread:
        raise UnreadableError(f"{source} has lines unknown to this reader ({len(code.unread)}), the first {code.unread[0]!r}")
    if not code.instructions:
        raise UnreadableError(f"{source} shows no instruction")
    return code


def disassembled(cubin: bytes) -> str:
    """The machine code as text, by the nvdisasm that Triton ships; raises UnreadableError where it cannot read it."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        try:
            done = subprocess.run(
                [knobs.nvidia.nvdisasm.path, "-c", file.name],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=NVDISASM_TIMEOUT,
            )
        except (RuntimeError, OSError) as error:  # Triton's own error where it finds none
            raise UnreadableError(str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise UnreadableError(f"nvdisasm gave nothing within {NVDISASM_TIMEOUT} s") from error
    if done.returncode:
        cause = next((line.strip() for line in done.stderr.splitlines() if line.strip()), "without a word")
        ending = f"died of {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "cannot read it"
        raise UnreadableError(f"nvdisasm {ending}: {cause}")
    return done.stdout


def write(folder: Path, stem: str, compiled: Any, launch: Any) -> list[str]:
    """Save assembly (on NVIDIA PTX and SASS), TTGIR and the order of the arguments; returns the files."""
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
    if "cubin" in compiled.asm:
        with suppress(UnreadableError):  # the row says why
            texts["sass"] = disassembled(compiled.asm["cubin"])
    texts["arguments.json"] = json.dumps(arguments, indent=2, default=str) + "\n"
    files = [folder / f"{stem}.{suffix}" for suffix in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text)
    return [str(file) for file in files]


if __name__ == "__main__":
    main()
