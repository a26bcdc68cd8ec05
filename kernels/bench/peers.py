"""Other libraries' kernels for the same operation, timed beside ours where they are installed."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

Call = Callable[[], object]


class Peer(NamedTuple):
    """One library.

    functions : where its function may be, as ``"module:function"``; the first that imports is taken
    bind : the call for a batch, clean_logits and max_window, or None where the library has no such call
    """

    functions: tuple[str, ...]
    bind: Callable[[Any, Any, bool, int | None], Call | None]

    def find(self) -> Any:
        """The function, None where it is not installed or does not import."""
        for place in self.functions:
            module, _, name = place.partition(":")
            try:
                return getattr(import_module(module), name)
            except (ImportError, AttributeError, OSError, RuntimeError):  # a library may be there and not start on this machine
                continue
        return None


def _deep_gemm(function: Any, batch: Any, clean_logits: bool, max_window: int | None) -> Call | None:
    operands = (batch.q, (batch.k, batch.k_scale), batch.weights, batch.starts, batch.ends)
    return partial(function, *operands, clean_logits=clean_logits, max_seqlen_k=max_window or 0)


def _aiter(function: Any, batch: Any, clean_logits: bool, max_window: int | None) -> Call | None:
    return None if max_window else partial(function, *batch, clean_logits=clean_logits)


def _tilelang(function: Any, batch: Any, clean_logits: bool, max_window: int | None) -> Call | None:
    return None if max_window else partial(function, *batch, clean_logits=clean_logits)


PEERS = {
    "deep_gemm": Peer(("deep_gemm:fp8_mqa_logits",), _deep_gemm),
    "aiter": Peer(
        ("aiter.ops.triton.attention.fp8_mqa_logits:fp8_mqa_logits", "aiter.ops.triton.fp8_mqa_logits:fp8_mqa_logits"), _aiter
    ),
    # TileLang's is an example of its repository (examples/deepseek_v32), to be put on PYTHONPATH.
    "tilelang": Peer(("fp8_lighting_indexer:mqa_attn_return_logits_interface",), _tilelang),
}


def installed() -> dict[str, str]:
    """The peers that are here and import, with their versions."""
    return {name: _version(name) for name, peer in PEERS.items() if peer.find() is not None}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
