"""Other libraries' kernels for the same operations, timed beside ours where they are installed."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any, NamedTuple

from capgate.compat.thirdparty import Raised, ask

from ...common.hardware import multiprocessors
from ...common.logits import ROW_ALIGNMENT
from ...key_selection import select_from_logits
from ...key_selection.operands import Paged
from ...key_selection.scratch import rows_within
from ..workloads.batch import Call
from ..workloads.decode import DecodeBatch
from ..workloads.prefill import PrefillBatch
from ..workloads.selection import Choice


class Peer(NamedTuple):
    """One library's function for one operation.

    modules : where the function may be; the first that imports and has it is taken
    functions : what it is called, and was in other versions
    bind : the call for a batch, or a selection's Choice, and clean_logits with that module; None where there is no such call
    otherwise : the same for versions of the library that refuse the first call
    """

    modules: tuple[str, ...]
    functions: tuple[str, ...]
    bind: Callable[[Any, Any, bool], Call | None]
    otherwise: tuple[Callable[[Any, Any, bool], Call | None], ...] = ()

    @property
    def ways(self) -> tuple[Callable[[Any, Any, bool], Call | None], ...]:
        """How it may be called, in the order to try."""
        return self.bind, *self.otherwise

    def find(self) -> ModuleType | Raised | None:
        """The module; why not where the library is installed and does not import or has no such function; None without it."""
        refused: list[str] = []
        for name in self.modules:
            found = ask(partial(_module, name))
            if isinstance(found, Raised):
                refused.append(found.words)
            elif found is not None and any(hasattr(found, function) for function in self.functions):
                return found
            elif found is not None:
                refused.append(f"{name} has no function {' or '.join(self.functions)}")
        return Raised("; ".join(refused)) if refused else None


def _module(name: str) -> ModuleType | None:
    """The module of that name, None where its library is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def _deep_gemm(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    operands = (batch.q, (batch.k, batch.k_scale), batch.weights, batch.starts, batch.ends)
    if not hasattr(module, "fp8_mqa_logits"):  # since 2.8, whose output is always compressed and never cleaned
        width = batch.max_window or (0 if batch.starts.any() else batch.k.shape[0])
        current = partial(module.fp8_fp4_mqa_logits, (batch.q, None), *operands[1:], width)
        return current if width and not clean_logits else None
    return partial(module.fp8_mqa_logits, *operands, clean_logits=clean_logits, max_seqlen_k=batch.max_window or 0)


def _deep_gemm_paged(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    if not hasattr(module, "fp8_paged_mqa_logits"):  # since 2.8, whose output is never cleaned
        return None if clean_logits else _deep_gemm_paged_by_row(module, batch, clean_logits)
    return _deep_gemm_paged_of(module, batch, batch.context_lens, clean_logits)


def _deep_gemm_paged_by_row(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    """With the keys that each row sees, [B, next_n]: what DeepGEMM 2.6 takes, without clean_logits."""
    return _deep_gemm_paged_of(module, batch, batch.seen.int().contiguous(), clean_logits)


def _deep_gemm_paged_of(module: Any, batch: Any, context_lens: Any, clean_logits: bool) -> Call:
    q, kv_cache, weights, _, block_table = batch.operands
    schedule = module.get_paged_mqa_logits_metadata(context_lens, kv_cache.shape[1], multiprocessors(q.device))
    arguments = (q, kv_cache, weights, context_lens, block_table, schedule, batch.max_context_len)
    if not hasattr(module, "fp8_paged_mqa_logits"):
        return partial(module.fp8_fp4_paged_mqa_logits, (q, None), *arguments[1:])
    return partial(module.fp8_paged_mqa_logits, *arguments, clean_logits=clean_logits)


def _deep_gemm_keys(module: Any, choice: Choice, clean_logits: bool) -> Call | None:
    """Two steps: the library's logits, of as many rows at a time as the budget has room for, and our selection from them."""
    return _keys_of(module, choice, _deep_gemm_paged)


def _deep_gemm_keys_by_row(module: Any, choice: Choice, clean_logits: bool) -> Call | None:
    return _keys_of(module, choice, _deep_gemm_paged_by_row)


def _keys_of(module: Any, choice: Choice, of_cache: Callable[[Any, Any, bool], Call | None]) -> Call | None:
    inputs, out = choice.inputs, choice.output()
    columns = choice.max_context_len if isinstance(inputs, Paged) else len(inputs.k)
    row_bytes = 4 * -(-(columns or 1) // ROW_ALIGNMENT) * ROW_ALIGNMENT  # DeepGEMM's rows are as far apart as ours
    step = rows_within(choice.budget, row_bytes, len(out))
    if step == 0 or (isinstance(inputs, Paged) and step < len(out)):  # a schedule is that of all requests
        return None
    steps: list[tuple[Call, Callable[[Any], Any]]] = []
    for rows in (slice(first, first + step) for first in range(0, len(out), step)):
        batch: Any
        if isinstance(inputs, Paged):
            batch = DecodeBatch(*inputs[:5], choice.max_context_len or 0)
            score, starts, ends = of_cache(module, batch, False), None, batch.seen.flatten().int()
        else:
            starts, ends = inputs.starts[rows], inputs.ends[rows]
            batch = PrefillBatch(inputs.q[rows], inputs.k, inputs.k_scale, inputs.weights[rows], starts, ends)
            score = _deep_gemm(module, batch, False)
        if score is None:
            return None
        steps.append((score, partial(select_from_logits, starts=starts, ends=ends, top_k=choice.top_k, out=out[rows])))

    def call() -> Any:
        for score, select in steps:
            select(score())
        return out

    return call


def _aiter(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    return None if batch.max_window else partial(module.fp8_mqa_logits, *batch.operands, clean_logits=clean_logits)


def _tilelang(module: Any, batch: Any, clean_logits: bool) -> Call | None:
    function = module.mqa_attn_return_logits_interface
    return None if batch.max_window else partial(function, *batch.operands, clean_logits=clean_logits)


DEEP_GEMM = ("deep_gemm", "vllm.third_party.deep_gemm")  # vLLM brings a copy
PEERS: dict[str, dict[str, Peer]] = {
    "fp8_mqa_logits": {
        "deep_gemm": Peer(DEEP_GEMM, ("fp8_mqa_logits", "fp8_fp4_mqa_logits"), _deep_gemm),
        "aiter": Peer(
            ("aiter.ops.triton.attention.fp8_mqa_logits", "aiter.ops.triton.fp8_mqa_logits"), ("fp8_mqa_logits",), _aiter
        ),
        # TileLang's is an example of its repository (examples/deepseek_v32), to be put on PYTHONPATH.
        "tilelang": Peer(("fp8_lighting_indexer",), ("mqa_attn_return_logits_interface",), _tilelang),
    },
    "fp8_paged_mqa_logits": {
        "deep_gemm": Peer(
            DEEP_GEMM,
            ("fp8_paged_mqa_logits", "fp8_fp4_paged_mqa_logits"),
            _deep_gemm_paged,
            (_deep_gemm_paged_by_row,),
        )
    },
    "select_keys": {
        "deep_gemm": Peer(
            DEEP_GEMM,
            ("fp8_mqa_logits", "fp8_fp4_mqa_logits"),
            _deep_gemm_keys,
            (_deep_gemm_keys_by_row,),
        )
    },
}
NAMES = tuple(dict.fromkeys(name for peers in PEERS.values() for name in peers))


def installed() -> dict[str, str]:
    """The peers that are here, also those that do not import, with their versions."""
    return {name: _version(name) for name in NAMES if any(name in peers and peers[name].find() for peers in PEERS.values())}


def _version(name: str) -> str:
    found = ask(partial(version, name))
    return "unknown" if isinstance(found, Raised) else str(found)
