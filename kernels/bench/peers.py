"""Other libraries' kernels for the same operations, timed beside ours where they are installed."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from ..launch import multiprocessors
from .batch import Call


class Peer(NamedTuple):
    """One library's function for one operation.

    modules : where the function may be; the first that imports and has it is taken
    bind : the call for a batch and clean_logits with that module, or None where the library has no such call
    """

    modules: tuple[str, ...]
    function: str
    bind: Callable[[Any, Any, bool], Call | None]

    def find(self) -> Any:
        """The module, None where it is not installed, does not import or has no such function."""
        for name in self.modules:
            try:
                module = import_module(name)
            except (ImportError, AttributeError, OSError, RuntimeError):  # a library may be there and not start on this machine
                continue
            if hasattr(module, self.function):
                return module
        return None


def _deep_gemm(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    operands = (batch.q, (batch.k, batch.k_scale), batch.weights, batch.starts, batch.ends)
    return partial(module.fp8_mqa_logits, *operands, clean_logits=clean_logits, max_seqlen_k=batch.max_window or 0)


def _deep_gemm_paged(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    workers = multiprocessors(batch.q.device)
    schedule = module.get_paged_mqa_logits_metadata(batch.context_lens, batch.kv_cache.shape[1], workers)
    arguments = (*batch.operands, schedule, batch.max_context_len)
    return partial(module.fp8_paged_mqa_logits, *arguments, clean_logits=clean_logits)


def _aiter(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    return None if batch.max_window else partial(module.fp8_mqa_logits, *batch.operands, clean_logits=clean_logits)


def _tilelang(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    function = module.mqa_attn_return_logits_interface
    return None if batch.max_window else partial(function, *batch.operands, clean_logits=clean_logits)


PEERS: dict[str, dict[str, Peer]] = {
    "fp8_mqa_logits": {
        "deep_gemm": Peer(("deep_gemm",), "fp8_mqa_logits", _deep_gemm),
        "aiter": Peer(
            ("aiter.ops.triton.attention.fp8_mqa_logits", "aiter.ops.triton.fp8_mqa_logits"), "fp8_mqa_logits", _aiter
        ),
        # TileLang's is an example of its repository (examples/deepseek_v32), to be put on PYTHONPATH.
        "tilelang": Peer(("fp8_lighting_indexer",), "mqa_attn_return_logits_interface", _tilelang),
    },
    "fp8_paged_mqa_logits": {"deep_gemm": Peer(("deep_gemm",), "fp8_paged_mqa_logits", _deep_gemm_paged)},
    "select_keys": {},
}
NAMES = tuple(dict.fromkeys(name for peers in PEERS.values() for name in peers))


def installed() -> dict[str, str]:
    """The peers that are here and import, with their versions."""
    return {name: _version(name) for name in NAMES if any(name in peers and peers[name].find() for peers in PEERS.values())}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
