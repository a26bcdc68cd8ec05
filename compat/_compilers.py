"""Which targets the compilers below Triton know: ptxas for NVIDIA, and for AMD Triton's own lowering to LLVM.

Triton finds out when a kernel is compiled: ptxas 12.8 knows no sm_103a, and each release drops and adds AMD architectures.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from . import _passes, _probes, versions
from ._errors import summary
from ._probes import Finding
from .targets import Target


def knows(target: Target) -> Finding:
    """Whether this Triton's compiler for ``target`` takes it; a few to 50 ms, for which no kernel is compiled."""
    if not (target.is_gpu and target.arch):
        return Finding(False, target.label)
    return _ptxas_knows(target) if target.backend == "cuda" else _lowering_knows(target)


def _ptxas_knows(target: Target) -> Finding:
    import subprocess

    text = versions.find("triton").found
    if _probes.resolve("triton.backends.nvidia.compiler") is None:
        return Finding(False, f"{text}, without a back end for NVIDIA")
    arch = int(re.sub(r"\D+$", "", target.arch))
    tool = _probes.ptxas_for(arch)
    if tool is None:
        return Finding(False, f"{text}, without ptxas for {target.label}")
    name = import_module("triton.backends.nvidia.compiler").sm_arch_from_capability(arch)
    # Options are read before the input, so that an empty one gets no farther than to be missed where the name is known.
    command = [tool.path, f"--gpu-name={name}", "--input-as-string", ""]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode < 0:
        done.check_returncode()
    refused = next((" ".join(line.split()) for line in done.stderr.splitlines() if "gpu-name" in line), "")
    found = f"ptxas {tool.version} with Triton {text}"
    return Finding(not refused, f"{found}, which says: {refused}" if refused else f"{found}, which knows {name}")


def _lowering_knows(target: Target) -> Finding:
    text, arch = versions.find("triton").found, target.arch.partition(":")[0]
    if _probes.resolve("triton.backends.amd.compiler") is None:
        return Finding(False, f"{text}, without a back end for AMD")
    if arch.startswith("gfx125") and not _probes.knows_gfx1250().holds:  # 3.6.0 lowers for it and hangs in LLVM
        return Finding(False, f"{text}, which does not compile for {arch}")
    gpu = import_module("triton.backends.compiler").GPUTarget("hip", arch, target.warp_size)
    libtriton = import_module("triton._C.libtriton")
    with _standard_error() as said:
        try:
            backend = import_module("triton.compiler.compiler").make_backend(gpu)
            options = backend.parse_options({"enable_fp_fusion": True})  # 3.9 warns where nothing chooses
            context = libtriton.ir.context()
            libtriton.ir.load_dialects(context)
            backend.load_dialects(context)
            manager = libtriton.ir.pass_manager(context)
            libtriton.amd.passes.ttgpuir.add_to_llvmir(manager, options.arch, True)
            _passes.run(manager, _passes.parsed(_NOTHING, context))
        except (RuntimeError, ValueError) as error:
            failure = summary(error)
        else:
            return Finding(True, f"Triton {text}, which knows {arch}")
    reason = next((line.partition("error:")[2].strip() for line in said if "error:" in line), failure)
    return Finding(False, f"{text}, which says: {reason}")


_NOTHING = """
module attributes {"ttg.num-ctas" = 1 : i32, "ttg.num-warps" = 4 : i32, "ttg.threads-per-warp" = 64 : i32,
                   ttg.shared = 0 : i32} {}
"""


@contextmanager
def _standard_error() -> Iterator[list[str]]:
    """Collect the lines that this process writes to standard error: MLIR prints why a pass fails, and raises without it."""
    said: list[str] = []
    try:
        kept = os.dup(2)
    except OSError:  # closed, as in a daemon
        yield said
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said += file.read().decode(errors="replace").splitlines()
