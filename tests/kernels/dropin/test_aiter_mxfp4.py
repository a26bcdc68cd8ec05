"""aiter's functions in MXFP4: each signature that there has been, against float64, in the layouts of its kernels."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import dropin
from capgate.kernels.dropin import NotServed, aiter  # noqa: A004 - a library's name
from support import judge, mx_paged, upstream
from support.mx_aiter import flydsl_operands, gluon_operands

INF = float("inf")
DECODE, PREFILL = aiter.flydsl_pa_mqa_logits_fp4, aiter.flydsl_pa_mqa_logits_fp4_prefill
GLUON = "aiter/ops/triton/attention/pa_mqa_logits_mxfp4.py"


def agree(logits: torch.Tensor, answer: judge.Answer, rest: float | None = None) -> None:
    """Where rows see keys; and in all other cells the rest."""
    judge.agree(logits[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    assert rest is None or (logits[~answer.inside] == rest).all()


@pytest.fixture
def run(variant: str) -> Callable[..., Any]:
    """Call a function with ours of this variant."""

    def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        with compat.override(variant={"mx_paged_mqa_logits": variant}):
            return function(*arguments, **keywords)

    return call


# --- FlyDSL -----------------------------------------------------------------------------------------------------------------


@pytest.mark.dealt
@pytest.mark.parametrize(("next_n", "heads"), [(1, 64), (2, 20)])
def test_decode(run: Callable[..., Any], next_n: int, heads: int) -> None:
    """New logits, and those of a schedule in a part of the engine's buffer, whose other cells stay."""
    call = mx_paged.make_call([70, 0, 133], next_n, heads, 128)
    operands, answer = flydsl_operands(call), mx_paged.formula(call, 140)
    lens = {"context_lens": call.context_lens, "max_seq_len": 140, "next_n": next_n}
    logits = run(DECODE, **operands, **lens)
    assert (logits.dtype, logits.stride()) == (torch.float32, (140, 1))
    agree(logits, answer, -INF)
    buffer = torch.full((3 * next_n + 2, 150), 7.0)
    scheduled = {"out": buffer, "cta_info": torch.zeros(9, 4), "total_ctas": 9}
    assert run(DECODE, **operands, **lens, **scheduled) is buffer
    agree(buffer[: 3 * next_n, :140], answer, 7.0)
    assert (buffer[3 * next_n :] == 7).all()
    assert (buffer[:, 140:] == 7).all()


@pytest.mark.any_triton
def test_weights_get_their_scale() -> None:
    """In float32, also where weights are bfloat16."""
    call = mx_paged.make_call([70, 5], 1, 16, 128)
    call = call._replace(weights=call.weights.bfloat16())
    scaled = call._replace(weights=call.weights.float() * 0.3)
    logits = DECODE(**flydsl_operands(call), context_lens=call.context_lens.long(), max_seq_len=70, weight_scale=0.3)
    agree(logits, mx_paged.formula(scaled, 70), -INF)


@pytest.mark.dealt
def test_prefill(run: Callable[..., Any]) -> None:
    """Rows of requests in any order, with windows of their own; rows without one, and in front of and behind one."""
    call = mx_paged.make_call([130, 64], 1, 16, 128)
    requests, starts, ends = ([1, 0, 0, 1, 0, 9], [0, 0, 65, 63, 7, 0], [64, 130, 66, 64, 7, 0])
    of_rows = [min(request, 1) for request in requests]
    rows = mx_paged.make_call([130] * 6, 1, 16, 128, seed=1)
    lens = torch.tensor(ends, dtype=torch.int32)
    rows = rows._replace(kv_cache=call.kv_cache, block_table=call.block_table[of_rows], context_lens=lens)
    answer, column = mx_paged.formula(rows, 130), torch.arange(130)
    answer = answer._replace(inside=answer.inside & (column >= torch.tensor(starts)[:, None]))
    operands = flydsl_operands(rows, rows=True) | {"block_tables": call.block_table}
    windows = {"row_to_batch": torch.tensor(requests), "local_starts": torch.tensor(starts).int(), "local_ends": lens}
    agree(run(PREFILL, **operands, **windows, max_seq_len=130), answer, -INF)
    buffer = torch.full((7, 140), 7.0)
    assert run(PREFILL, **operands, **windows, max_seq_len=130, out=buffer) is buffer
    agree(buffer[:6, :130], answer, -INF)
    assert (buffer[6:] == 7).all()
    buffer.fill_(7)
    run(PREFILL, **operands, **windows, max_seq_len=130, out=buffer, cta_info=torch.zeros(9, 6), n_ctas=9)
    agree(buffer[:6, :130], answer)
    behind = column >= lens[:, None]
    assert (buffer[:6, :130][behind] == 7).all()
    assert (buffer[:6, :130][~behind & ~answer.inside] == -INF).all()


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q_fp4": torch.zeros(2, 16, 64).byte()}, ValueError, "q_fp4: got shape (2, 16, 64), needs [B, next_n, H, D / 2]"),
        ({"q_fp4": None}, TypeError, "q_fp4: got NoneType, needs a torch.Tensor"),
        ({"next_n": 2}, ValueError, "next_n: got 2, needs q_fp4's 1"),
        (
            {"q_scale": torch.zeros(2, 1, 16, 4).byte()},
            ValueError,
            "q_scale: got shape (2, 1, 16, 4), needs [2, 1, 1, 4",
        ),
        ({"q_scale": torch.zeros(2, 1, 1, 4, 16, 0).byte()}, ValueError, "P of 1 or more"),
        ({"q_scale": torch.zeros(2, 1, 1, 4, 16, 4)}, TypeError, "q_scale: got torch.float32, needs torch.uint8"),
        ({"kv_block_size": 32}, ValueError, "kv_block_size: got 32, needs kv_cache's 64"),
        (
            {"kv_cache": torch.zeros(4, 64, 1, 68).byte()},
            ValueError,
            "kv_cache: got shape (4, 64, 1, 68), needs [num_blocks",
        ),
        ({"kv_scale": torch.zeros(4, 1, 4, 64)}, ValueError, "kv_scale: got shape (4, 1, 4, 64), needs [5, 1, 4, 64]"),
        ({"kv_scale": torch.zeros(5, 1, 4, 64)}, TypeError, "kv_scale: got torch.float32, needs torch.uint8"),
        ({"context_lens": torch.ones(2)}, TypeError, "context_lens: got torch.float32, needs torch.int32 or torch.int64"),
        ({"max_seq_len": 80.0}, TypeError, "max_seq_len: got float, needs an int"),
        ({"out": torch.zeros(1, 80)}, ValueError, "out: got shape (1, 80), needs [2, 80] or more"),
        ({"out": torch.zeros(2, 80).bfloat16()}, TypeError, "out: got torch.bfloat16, needs torch.float32"),
        ({"stream": object()}, NotServed, "a stream other than the current one"),
        ({"q_fp4": torch.zeros(2, 1, 16, 128).byte()}, NotServed, "queries of other than 128 dims"),
        (
            {"kv_cache": torch.zeros(4, 1, 4, 128, 16).byte(), "kv_block_size": 128},
            NotServed,
            "blocks of other than 64 keys",
        ),
    ],
)
def test_what_flydsl_s_functions_do_not_take(change: dict[str, Any], error: type[Exception], words: str) -> None:
    call = mx_paged.make_call([70, 5], 1, 16, 128)
    arguments = {**flydsl_operands(call), "context_lens": call.context_lens, "max_seq_len": 80, **change}
    with pytest.raises(error, match=re.escape(words)):
        DECODE(**arguments)


@pytest.mark.any_triton
@pytest.mark.parametrize("name", ["row_to_batch", "local_starts", "local_ends"])
def test_windows_that_do_not_go_with_their_rows(name: str) -> None:
    call = mx_paged.make_call([70, 5], 1, 16, 128)
    windows = dict.fromkeys(("row_to_batch", "local_starts", "local_ends"), torch.zeros(2).int())
    windows[name] = torch.zeros(3).int()
    with pytest.raises(ValueError, match=rf"^{name}: got shape \(3,\), needs \[2\] to match q_fp4"):
        PREFILL(**flydsl_operands(call, rows=True), **windows, max_seq_len=80)


# --- Gluon ------------------------------------------------------------------------------------------------------------------


@pytest.mark.dealt("layout")
@pytest.mark.parametrize(("layout", "heads", "block"), [("gluon-32", 32, 64), ("gluon-16", 16, 32), ("flat", 16, 64)])
@pytest.mark.parametrize("next_n", [1, 3])
def test_the_layout_is_that_of_the_heads(run: Callable[..., Any], layout: str, heads: int, block: int, next_n: int) -> None:
    call = mx_paged.make_call([70, 0, 33], next_n, heads, 128, block, layout=layout, gap=16)
    answer, preshuffle = mx_paged.formula(call, 75, layout), int(layout != "flat")
    operands = {**gluon_operands(call), "max_model_len": 75, "preshuffle": preshuffle}
    logits = run(aiter.paged_mxfp4_mqa_logits, **operands)
    assert logits.is_contiguous()
    agree(logits, answer, -INF)
    out = torch.full((3 * next_n, 75), 7.0)
    assert run(aiter.paged_mxfp4_mqa_logits, **operands, out_logits=out, clean_logits=False) is out
    agree(out, answer, 7.0)


@pytest.mark.any_triton
@pytest.mark.parametrize("packed", [False, True], ids=["rows of one number", "packed rows"])
@pytest.mark.parametrize("given", [False, True], ids=["drafts", "ends"])
def test_ends_of_rows(packed: bool, given: bool) -> None:
    """Requests of two rows each, or of 3, none and 1, and a row that is nobody's; an end is at most its request's."""
    call = mx_paged.make_call([70, 0, 33], 1, 32, 128, layout="gluon-32")
    counts = [3, 0, 1] if packed else [2, 2, 2]
    ends = torch.tensor([9, 70, 68, 99, 1, 1][: sum(counts) + packed], dtype=torch.int32) if given else None
    requests = [request for request, count in enumerate(counts) for _ in range(count)]
    seen = [call.context_lens[request] - counts[request] + 1 + t for request, count in enumerate(counts) for t in range(count)]
    if ends is not None:
        seen = [min(end, call.context_lens[request]) for end, request in zip(ends, requests, strict=False)]
    rows = mx_paged.make_call([70] * len(requests), 1, 32, 128, seed=1)
    lens = torch.tensor(seen).int()
    rows = rows._replace(kv_cache=call.kv_cache, block_table=call.block_table[requests], context_lens=lens)
    answer, operands = mx_paged.formula(rows, 75, "gluon-32"), gluon_operands(rows)
    operands |= {"context_lens": call.context_lens, "block_table": call.block_table, "row_ends": ends, "max_model_len": 75}
    if packed:
        for name in ("q", "q_scales", "weights"):  # with a row that is nobody's
            operands[name] = torch.cat([operands[name], operands[name][:1]]).flatten(0, 1 if name != "weights" else 0)
        starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
        logits = aiter.paged_mxfp4_mqa_logits(**operands, query_start_loc=starts, next_n=2)
        assert (logits[-1] == -INF).all()
        logits = logits[:-1]
    else:
        operands |= {name: operands[name].unflatten(0, (3, 2)).squeeze(2) for name in ("q", "q_scales")}
        logits = aiter.paged_mxfp4_mqa_logits(**operands)
    agree(logits, answer, -INF)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"q": torch.zeros(2, 16, 64).byte()}, ValueError, "q: got shape (2, 16, 64), needs [B, next_n, H, D / 2]"),
        ({"q": torch.zeros(2, 1, 16, 64)}, TypeError, "q: got torch.float32, needs torch.uint8"),
        ({"q_scales": torch.zeros(2, 1, 16, 2).byte()}, ValueError, "q_scales: got shape (2, 1, 16, 2), needs [2, 1, 16, 4]"),
        ({"context_lens": torch.ones(3).int()}, ValueError, "context_lens: got shape (3,), needs [2]"),
        ({"block_table": torch.ones(2, 2).long()}, TypeError, "block_table: got torch.int64, needs torch.int32"),
        ({"kv_cache": torch.zeros(3, 64, 1, 72).byte()}, ValueError, "kv_cache: got keys of 72 bytes, needs 68"),
        ({"row_ends": torch.ones(3).int()}, ValueError, "row_ends: got shape (3,), needs [2]"),
        ({"row_ends": torch.ones(2)}, TypeError, "row_ends: got torch.float32, needs torch.int32"),
        ({"out_logits": torch.zeros(2, 79)}, ValueError, "out: got shape (2, 79), needs [2, 80]"),
        ({"kv_scale_cache": torch.zeros(1)}, NotServed, "scales in a cache of their own"),
        ({"scale_mode": 0}, NotServed, "scales in the narrow order"),
        ({"use_gather": True, "candidates": torch.zeros(2, 4)}, NotServed, "logits of listed candidates"),
        ({"calc_block_scores": True}, NotServed, "scores of candidate blocks"),
        ({"calc_logits": False}, NotServed, "scores of candidate blocks"),
        ({"kv_cache": torch.zeros(3, 512, 1, 68).byte()}, NotServed, "blocks of more than 256 keys"),
        (
            {"q": torch.zeros(2, 1, 16, 32).byte(), "q_scales": torch.zeros(2, 1, 16, 2).byte()},
            NotServed,
            "queries of other than 128 dims",
        ),
        (
            {"q": torch.zeros(2, 1, 256, 64).byte(), "q_scales": torch.zeros(2, 1, 256, 4).byte()},
            NotServed,
            "more than 128 heads",
        ),
    ],
)
def test_what_the_gluon_function_does_not_take(change: dict[str, Any], error: type[Exception], words: str) -> None:
    call = mx_paged.make_call([70, 5], 1, 16, 128, layout="gluon-16")
    with pytest.raises(error, match=re.escape(words)):
        aiter.paged_mxfp4_mqa_logits(**{**gluon_operands(call), "max_model_len": 80, **change})


# --- in aiter's place -------------------------------------------------------------------------------------------------------

CALLS_BEYOND = {  # what an earlier release has that ours leaves to it, and what all have
    "mxfp4_first": {},
    "mxfp4_gather": {"gather": {}, "block_scores": torch.zeros(2, 10), "pin_newest": True},
    "mxfp4": {"use_gather": True, "calc_block_scores": True},
}


@pytest.mark.any_triton
@pytest.mark.parametrize("generation", upstream.MXFP4)
def test_each_release_gets_the_function_of_its_signature(generation: str, site: Path) -> None:
    """By keywords, and by position up to what all have; a row's ends under the name that the release gives them."""
    upstream.write_packages(site, {GLUON: (upstream.MXFP4[generation],)})
    dropin.install("aiter")
    module = importlib.import_module("aiter.ops.triton.attention.pa_mqa_logits_mxfp4")
    assert module.paged_mxfp4_mqa_logits.__wrapped__.__module__.endswith(f".{generation}")
    call = mx_paged.make_call([70, 5], 1, 32, 128, layout="gluon-32")
    operands = tuple(gluon_operands(call).values())
    out = torch.full((2, 80), 7.0)
    module.paged_mxfp4_mqa_logits(*operands, 80, None, out, False, 1, schedule=None, dynamic=1)
    agree(out, mx_paged.formula(call, 80, "gluon-32"), 7.0)
    ends = {"mxfp4_gather": "cu_ends", "mxfp4": "row_ends"}.get(generation)
    if ends:
        shorter = call._replace(context_lens=torch.tensor([9, 5]).int())
        logits = module.paged_mxfp4_mqa_logits(*operands, 80, **{ends: torch.tensor([9, 7]).int()})
        agree(logits, mx_paged.formula(shorter, 80, "gluon-32"), -INF)
    for name, value in CALLS_BEYOND[generation].items():
        with pytest.raises(AssertionError, match=r"^$"):  # of the package's own function
            module.paged_mxfp4_mqa_logits(*operands, 80, **{name: value})


@pytest.mark.any_triton
@pytest.mark.parametrize("folder", ["aiter/ops/flydsl/kernels", "aiter/ops/flydsl/kernels/mqa_logits"])
@pytest.mark.parametrize("signature", [upstream.FLYDSL, upstream.FLYDSL_UNSCALED], ids=["scaled", "unscaled"])
def test_flydsl_s_modules_old_and_new(folder: str, signature: str, site: Path) -> None:
    """Those that hold the functions get ours, too: aiter's own package, and what calls the one for prefill."""
    prefill = f"{folder}/pa_mqa_logits_fp4_prefill.py"
    upstream.write_packages(site, {f"{folder}/pa_mqa_logits_fp4.py": (signature,), prefill: (upstream.FLYDSL_PREFILL,)})
    (site / "aiter/ops/flydsl/__init__.py").write_text(
        f"from {folder.replace('/', '.')}.pa_mqa_logits_fp4 import flydsl_pa_mqa_logits_fp4\n"
    )
    report = dropin.install("aiter")
    assert {function for one in report.taken for function in one.functions} == {DECODE.__name__, PREFILL.__name__}
    held = importlib.import_module("aiter.ops.flydsl").flydsl_pa_mqa_logits_fp4
    call = mx_paged.make_call([70, 5], 1, 16, 128)
    logits = held(*flydsl_operands(call).values(), call.context_lens, 70, parallel_unit_num=512)
    agree(logits, mx_paged.formula(call, 70), -INF)
    with pytest.raises(AssertionError, match=r"^$"):  # of the package's own function
        held(*flydsl_operands(call).values(), call.context_lens, 70, stream=object())


@pytest.mark.any_triton
def test_flydsl_without_its_compiler(site: Path) -> None:
    """Its families are left, with the reason, and no other."""
    folder = "aiter/ops/flydsl/kernels/mqa_logits"
    upstream.write_packages(site, {GLUON: (upstream.MXFP4["mxfp4"],), f"{folder}/pa_mqa_logits_fp4.py": ()})
    (site / folder / "pa_mqa_logits_fp4.py").write_text("import a_compiler_that_is_not_there\n")
    report = dropin.install("aiter")
    assert [one.functions for one in report.taken] == [("paged_mxfp4_mqa_logits",)]
    (reason,) = [one.reason for one in report.left if one.functions == (DECODE.__name__,)]
    assert "does not import: No module named 'a_compiler_that_is_not_there'" in reason
