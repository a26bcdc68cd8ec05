"""What compiles of gluon_hopper kernels for cuda:90 have in common: of compile_hopper and of compile_fused_hopper."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import lru_cache
from io import StringIO
from typing import Any

from capgate import compat
from capgate.compat.offline import absent, child
from capgate.compat.offline.answers import Answer, serve
from capgate.compat.offline.disassembly import read_sass

from . import code_reading, mbarriers


def serve_compiles(row_of: Callable[[dict[str, Any], str], dict[str, Any]]) -> None:
    """Answer the request on standard input.

    row_of : what of the request and one of its jobs compiles
    """

    def begin(request: dict[str, Any]) -> Answer:
        child.disassembled = lru_cache(maxsize=1)(child.disassembled)  # of each cubin once, for its figures and its descriptors
        absent.set_absent_gpu(compat.capabilities("cuda:90").target)

        def answer(job: str) -> Iterator[dict[str, Any]]:
            yield {**row_of(request, job), "compiled": True}

        return answer

    serve(begin)


def compile_launch(launch: "compat.Launch", call: "compat.ExampleCall") -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(what Triton compiled, its figures as ``capgate compile`` has them, what tests ask of all of these kernels)."""
    kernel, grid, arguments, keywords = launch
    with redirect_stdout(StringIO()) as log:
        compiled = kernel.warmup(*arguments, grid=grid, **keywords)
    figures = child.describe(compiled, compat.capabilities("cuda:90").target, call, log.getvalue())
    code = read_sass(child.disassembled(compiled.asm["cubin"]))
    return (
        compiled,
        figures,
        {
            "wgmma": Counter(re.findall(r"wgmma\.mma_async\S*", compiled.asm["ptx"])),
            "serialized": "C7514" in log.getvalue(),
            "faults": mbarriers.faults(compiled.asm["llir"], mbarriers.boxes_of(list(compiled.src.signature.values()))),
            "undefined": code_reading.undefined_descriptors(code),
            "fenced": code_reading.released_behind_fences(code),
        },
    )
