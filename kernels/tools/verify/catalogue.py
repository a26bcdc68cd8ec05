"""The cases of ``capgate verify``: a compact grid of every operation, and the same kinds of call small enough for a CPU."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from capgate import compat

from ...candidate_blocks.operation import masking, scoring
from ...common.schedule.operation import operation as scheduling
from ...fused_selection.operation import dense as fused_dense
from ...fused_selection.operation import paged as fused_paged
from ...key_cache.operation import gathering, writing
from ...key_cache.operation_mx import gathering as mx_gathering
from ...key_cache.operation_mx import writing as mx_writing
from ...key_selection.operation import operation as selecting
from ...mqa_logits.operation import operation as dense
from ...mx_logits.operation import operation as mx_dense
from ...mx_paged_logits.operation import operation as mx_paged
from ...mx_quantization.operation import operation as mx_quantizing
from ...paged_mqa_logits.operation import operation as paged
from ...sparse_logits.operation import dense as sparse
from ...sparse_logits.operation import mx_dense as mx_sparse
from ...sparse_logits.operation import mx_paged as mx_sparse_paged
from ...sparse_logits.operation import paged as sparse_paged
from . import checks, checks_keys

FEW = 12  # lengths that a name has
ENABLED = "packed_clamp"  # what the cases of packed relu ask about


@dataclass(frozen=True)
class Case:
    """A call, and what judges it.

    check : ``check(place, **options)`` of :mod:`.checks`
    quick : whether a short run has it, too
    asks : the capability that no hardware has shown, whose answer this is; "" for none
    asked_of : the variants whose kernels use it
    """

    operation: compat.Operation[Any]
    check: Callable[..., None]
    options: dict[str, Any]
    quick: bool = False
    asks: str = ""
    asked_of: tuple[str, ...] = ("gluon_cdna4",)

    @property
    def name(self) -> str:
        """What it is called in tables, and where it is asked for: its options, in words."""
        words = [self.check.__name__] if self.asks else []
        for name, value in self.options.items():
            if value is True:
                words.append(name)
            elif isinstance(value, str):
                words.append(value)
            elif isinstance(value, list):
                few = len(value) <= FEW
                words.append(f"{name} {'+'.join(map(str, value))}" if few else f"{name} {len(value)} of {sum(value)} in all")
            elif value is not False:
                words.append(f"{name} {value}")
        return " ".join(words)


# What a call on a CPU has at most of each, for the interpreter takes a tenth of a second for each program.
SMALL = {"rows": 3, "keys": 150, "columns": 150, "top_k": 9, "workers": 5, "listed": 9, "top_blocks": 9}
SMALL_LENS = 4, 140  # requests, and keys of each


def smaller(case: Case) -> Case:
    """The same kind of call, small."""
    options = {name: min(value, SMALL[name]) if name in SMALL else value for name, value in case.options.items()}
    if "lens" in options:
        requests, keys = SMALL_LENS
        options["lens"] = [min(length, keys) for length in options["lens"][:requests]]
    return Case(case.operation, case.check, options, case.quick, case.asks)


def cases(small: bool, quick: bool = False) -> list[Case]:
    """All cases, each once.

    small : for a CPU
    quick : those of a short run alone
    """
    chosen = [smaller(case) if small else case for case in _all() if case.quick or not quick]
    return list({(case.operation.name, case.name): case for case in chosen}.values())


def find(operation: str, name: str, small: bool) -> Case:
    """The case of that name. Raises ValueError where there is none."""
    for case in cases(small):
        if (case.operation.name, case.name) == (operation, name):
            return case
    raise ValueError(f"case: {operation} has none called {name!r}")


@dataclass
class _Row:
    """A case's options but for those that a table of cases shares."""

    quick: bool
    values: tuple[Any, ...]
    more: dict[str, Any] = field(default_factory=dict)


def _row(*values: Any, quick: bool = False, **more: Any) -> _Row:
    return _Row(quick, values, more)


def _table(
    operation: compat.Operation[Any], check: Callable[..., None], names: str, *rows: _Row, asks: str = ""
) -> Iterator[Case]:
    for row in rows:
        yield Case(operation, check, dict(zip(names.split(), row.values, strict=True)) | row.more, row.quick, asks)


LENS = [1500, 0, 64, 1, 129, 260, 3000, 0, 33]


def _all() -> Iterator[Case]:
    yield from _table(
        dense,
        checks.dense,
        "rows keys heads dim windows mode",
        _row(61, 1024, 64, 128, "packed", "clean", quick=True),
        _row(300, 2000, 64, 128, "ragged", "unclean", quick=True),
        _row(300, 2000, 64, 128, "causal", "compressed", quick=True),
        _row(128, 1560, 32, 128, "ragged", "clean", quick=True),
        _row(61, 1024, 32, 64, "suffix", "unclean"),
        _row(17, 76, 16, 64, "ragged", "clean"),
        _row(61, 1024, 128, 128, "context-parallel", "unclean", quick=True),
        _row(61, 500, 64, 64, "packed", "clean"),
        _row(61, 500, 64, 32, "extreme", "clean"),
        _row(61, 1024, 100, 128, "ragged", "unclean"),
        _row(17, 300, 3, 64, "ragged", "clean"),
        _row(5, 113, 64, 128, "empty", "clean"),
        _row(1, 16, 64, 128, "full", "unclean"),
        _row(61, 1001, 64, 128, "ragged", "unclean", odd=True),
        _row(61, 1000, 64, 128, "ragged", "clean", logits="bfloat16", quick=True),
        _row(61, 1000, 32, 128, "causal", "compressed", logits="bfloat16"),
        _row(61, 1024, 64, 128, "ragged", "unclean", apart=True),
        _row(61, 1024, 64, 128, "ragged", "unclean", nan=True, quick=True),
        _row(61, 1024, 32, 128, "ragged", "clean", nan=True),
        _row(61, 1024, 64, 128, "ragged", "unclean", dtype="float8_e4m3fn"),
        _row(2048, 8192, 64, 128, "causal", "unclean"),
    )
    yield from _table(
        dense,
        checks.packed_relu,
        "rows keys heads dim",
        _row(300, 1024, 64, 128, quick=True),
        _row(300, 1024, 64, 128, nan=True, quick=True),
        _row(300, 1024, 32, 64),
        _row(300, 1024, 16, 32, nan=True),
        _row(300, 1024, 128, 128, nan=True),
        asks=ENABLED,
    )
    yield from _table(
        paged,
        checks.paged_logits,
        "lens next_n heads dim block mode",
        _row(LENS, 1, 64, 128, 64, "unclean", quick=True),
        _row(LENS, 2, 64, 128, 64, "clean", quick=True),
        _row(LENS, 1, 32, 128, 64, "clean"),
        _row(LENS, 6, 64, 128, 64, "unclean"),
        _row(LENS, 3, 32, 64, 16, "unclean"),
        _row(LENS, 1, 64, 128, 1, "clean"),
        _row(LENS, 2, 128, 128, 128, "clean"),
        _row(LENS, 1, 16, 32, 64, "clean"),
        _row(LENS, 2, 3, 64, 64, "unclean"),
        _row(LENS, 1, 64, 128, 64, "unclean", layout="preshuffled", quick=True),
        _row(LENS, 2, 64, 128, 64, "clean", workers=7),
        _row(LENS, 2, 64, 128, 64, "clean", absent=True),
        _row(LENS, 3, 64, 128, 64, "clean", row_lens=True),
        _row(LENS, 1, 64, 128, 64, "clean", logits="bfloat16"),
        _row([9000] * 16, 1, 64, 128, 64, "unclean"),
    )
    yield from _table(
        paged,
        checks.packed_relu_paged,
        "lens next_n heads dim block",
        _row(LENS, 1, 64, 128, 64, quick=True),
        _row(LENS, 2, 64, 128, 64, nan=True, quick=True),
        _row(LENS, 1, 32, 128, 64),
        asks=ENABLED,
    )
    yield from _table(
        mx_dense,
        checks.mx_dense,
        "rows keys heads dim windows mode",
        _row(61, 1024, 64, 128, "packed", "clean", quick=True),
        _row(128, 1560, 32, 128, "ragged", "unclean"),
        _row(61, 500, 64, 64, "ragged", "compressed"),
        _row(61, 500, 64, 128, "ragged", "clean", queries="mxfp8", keys_in="mxfp8", quick=True),
        _row(17, 300, 16, 32, "ragged", "clean", queries="mxfp8", keys_in="mxfp8"),
        _row(61, 500, 64, 128, "ragged", "unclean", queries="mxfp8", keys_in="mxfp4"),
        _row(61, 500, 64, 128, "ragged", "clean", logits="bfloat16"),
    )
    yield from _table(
        mx_paged,
        checks.mx_paged_logits,
        "lens next_n heads dim block mode",
        _row(LENS, 1, 64, 128, 64, "unclean", quick=True),
        _row(LENS, 2, 32, 64, 16, "clean"),
        _row(LENS, 1, 64, 128, 64, "clean", queries="mxfp8", keys_in="mxfp8", quick=True),
        _row(LENS, 2, 64, 128, 64, "clean", layout="gluon-32"),
        _row(LENS, 1, 64, 128, 64, "unclean", layout="flydsl"),
        _row(LENS, 1, 64, 128, 64, "unclean", queries="mxfp8", keys_in="mxfp8", layout="preshuffled"),
    )
    yield from _table(
        sparse,
        checks.sparse,
        "rows keys listed heads dim windows mode",
        _row(30, 1000, 20, 32, 128, "ragged", "unclean", quick=True),
        _row(30, 1000, 40, 64, 128, "causal", "clean"),
        _row(17, 500, 20, 16, 64, "packed", "clean", block=16),
    )
    yield from _table(
        sparse_paged,
        checks.sparse_paged,
        "lens next_n listed heads dim mode",
        _row(LENS, 1, 20, 32, 128, "unclean", quick=True),
        _row(LENS, 2, 20, 64, 128, "clean"),
        _row(LENS, 1, 20, 32, 64, "clean", layout="preshuffled"),
    )
    yield from _table(
        mx_sparse,
        checks.sparse,
        "rows keys listed heads dim windows mode",
        _row(30, 1000, 20, 32, 128, "ragged", "unclean", queries="mxfp4", keys_in="mxfp4", quick=True),
        _row(17, 500, 20, 64, 128, "causal", "clean", queries="mxfp8", keys_in="mxfp8", block=16),
    )
    yield from _table(
        mx_sparse_paged,
        checks.sparse_paged,
        "lens next_n listed heads dim mode",
        _row(LENS, 1, 20, 32, 128, "unclean", queries="mxfp4", keys_in="mxfp4", quick=True),
        _row(LENS, 2, 20, 32, 64, "clean", queries="mxfp8", keys_in="mxfp4"),
        _row(LENS, 1, 20, 32, 128, "clean", queries="mxfp4", keys_in="mxfp4", layout="gluon-32"),
    )
    yield from _table(
        scoring,
        checks_keys.choose_blocks,
        "rows columns top_blocks kind windows",
        _row(33, 3000, 64, "normal", "ragged", quick=True),
        _row(17, 3001, 40, "nans", "packed", block=16),
        _row(17, 1000, 200, "infinities", "full"),
    )
    yield from _table(
        masking,
        checks_keys.mask_blocks,
        "rows columns listed windows",
        _row(33, 3000, 64, "ragged", quick=True),
        _row(17, 3001, 40, "packed", block=16),
    )
    yield from _table(
        selecting,
        checks_keys.select,
        "rows columns top_k kind windows",
        _row(33, 3000, 512, "normal", "ragged", quick=True),
        _row(33, 3000, 512, "few-values", "full", quick=True),
        _row(33, 3000, 64, "nans", "ragged"),
        _row(5, 20001, 2048, "normal", "full", quick=True),
        _row(5, 20001, 512, "equal", "suffix"),
        _row(5, 20000, 512, "nans", "suffix"),
        _row(17, 3001, 512, "wide", "ragged"),
        _row(17, 3000, 512, "zeros", "ragged", relative=True),
        _row(17, 3000, 512, "normal", "ragged", logits="bfloat16"),
    )
    yield from _table(
        fused_dense,
        checks_keys.fused,
        "rows keys heads dim top_k windows",
        _row(60, 5000, 64, 128, 512, "full", quick=True),
        _row(60, 20001, 64, 128, 2048, "full"),
        _row(33, 3001, 64, 128, 512, "ragged", ties=True),
        _row(15, 3001, 16, 32, 64, "ragged"),
        _row(30, 3001, 32, 64, 64, "full"),
    )
    yield from _table(
        fused_paged,
        checks_keys.fused_paged,
        "lens next_n heads dim top_k",
        _row(LENS, 1, 64, 128, 512, quick=True),
        _row(LENS, 2, 32, 64, 64),
        _row([20001, 9000], 1, 64, 128, 2048),
    )
    yield from _table(
        scheduling,
        checks_keys.schedule,
        "lens workers chunk_keys",
        _row(LENS, 7, 128, quick=True),
        _row(LENS, 132, 256),
        _row([997 * request % 5003 for request in range(300)], 264, 128),
    )
    yield from _table(
        writing,
        checks_keys.write,
        "keys dim block",
        _row(1000, 128, 64, quick=True),
        _row(1000, 64, 16, scale_format="ue8m0"),
        _row(200, 32, 1),
        _row(1000, 128, 64, layout="preshuffled", scale_format="ue8m0"),
    )
    yield from _table(
        gathering,
        checks_keys.gather,
        "lens dim block",
        _row(LENS, 128, 64, quick=True),
        _row(LENS, 64, 16, absent=True),
        _row(LENS, 32, 1),
        _row(LENS, 128, 64, layout="preshuffled"),
    )
    yield from _table(
        mx_writing,
        checks_keys.write_mx,
        "keys dim block key_format rule",
        _row(1000, 128, 64, "mxfp4", "vllm", quick=True),
        _row(1000, 128, 64, "mxfp8", "deepgemm"),
        _row(1000, 128, 64, "mxfp4", "sglang", layout="gluon-16"),
    )
    yield from _table(
        mx_gathering,
        checks_keys.gather_mx,
        "lens dim block key_format",
        _row(LENS, 128, 64, "mxfp4", quick=True),
        _row(LENS, 64, 16, "mxfp8"),
        _row(LENS, 128, 64, "mxfp4", layout="gluon-32"),
    )
    yield from _table(
        mx_quantizing,
        checks_keys.quantize_mx,
        "keys dim key_format rule",
        _row(1000, 128, "mxfp4", "vllm", quick=True),
        _row(1000, 64, "mxfp4", "sglang"),
        _row(1000, 128, "mxfp8", "vllm"),
        _row(1000, 32, "mxfp8", "deepgemm"),
    )
