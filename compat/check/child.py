"""Compiles recorded launches in a process of its own: ``python -m capgate.compat.check.child``, started by :mod:`.cells`."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

from capgate import compat

from .._errors import summary
from .._installation import version
from ..offline.answers import Answer, serve
from ..offline.child import describe
from .recordings import Launch
from .results import Results
from .sources import MissingSourceError, Sources, kernel_of
from .unrun import UnrunGpu
from .values import rebuild

KEYS = ("vgprs", "agprs", "sgprs", "spills", "scratch_bytes", "lds_bytes", "waves_per_simd", "code_bytes", "unread")


def main() -> None:
    """Answer the request on standard input."""
    serve(begin)


def begin(request: dict[str, Any]) -> Answer:
    """What answers the request's jobs, each a recorded launch."""
    target = compat.capabilities(request["target"]).target
    _pretend(UnrunGpu(target, fake=False))  # before a module asks while it is imported
    sys.path += [entry for entry in request["path"] if entry not in sys.path]
    import triton

    build = f"{triton.__version__} {request['build']}"
    sources, results = Sources(Path(request["root"])), Results(request["results"])
    return lambda launch: answer(sources, results, target, build, launch)


def _pretend(gpu: UnrunGpu) -> None:
    """Let Triton's driver and torch.cuda answer of a GPU, as they do where the modules are imported that are checked."""
    from triton.runtime import driver

    driver.set_active(gpu)
    with suppress(ImportError):
        import torch

        for name, function in gpu.cuda().items():
            setattr(torch.cuda, name, function)


def answer(sources: Sources, results: Results, target: compat.Target, build: str, launch: Launch) -> Iterator[dict[str, Any]]:
    """The parts of a launch's row: its key in the cache of results, then what that has or what the compiler makes of it."""
    recorded = launch["kernel"]
    yield {"accepted": True}
    if launch["unrecorded"]:
        yield {"compiled": False, "error": f"not recorded: {launch['unrecorded']}"}
        return

    def find(place: dict[str, Any]) -> Any:
        return sources.find(place["module"], place["file"], place["name"])

    try:
        kernel = kernel_of(find(recorded))
    except MissingSourceError as error:
        yield {"compiled": False, "error": f"not found again: {error}"}
        return
    except Exception as error:  # of the module, while it is imported
        yield {"compiled": False, "error": f"{recorded['module']} does not import: {summary(error)}"}
        return
    key = key_of(kernel, target, build, launch)
    yield {"key": key}
    if (known := results.get(key)) is not None:
        yield {**known, "cached": True}
        return
    arguments = {name: rebuild(described, find) for name, described in launch["arguments"].items()}
    options = {name: rebuild(described, find) for name, described in launch["options"].items()}
    with redirect_stdout(StringIO()) as log:
        began = time.perf_counter()
        compiled = kernel.warmup(**arguments, **options, grid=tuple(launch["grid"] or (1,)))
        seconds = time.perf_counter() - began
    yield {"seconds": round(seconds, 3)}
    figures = describe(compiled, target, compat.ExampleCall((), {}), log.getvalue())
    yield {"compiled": True, "error": None, **{key: figures.get(key) for key in KEYS}}


def key_of(kernel: Any, target: compat.Target, build: str, launch: Launch) -> str:
    """What a result depends on: Triton's hash of the kernel's source with all that it calls, and everything it is told."""
    told = {name: launch[name] for name in ("arguments", "options")}
    switches = {name: text for name, text in os.environ.items() if name.startswith(("TRITON_", "MLIR_", "LLVM_", "AMDGCN_"))}
    whole = [version(), build, str(target), kernel.cache_key, told, {**switches, "TRITON_CACHE_DIR": ""}]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    main()
