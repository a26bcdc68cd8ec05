"""aiter's own modules under their old and new names, and calls as ATOM's models make them.

aiter's paged function needs a Triton that its Gluon kernels take; with an older one its module does not import, and everything
else is replaced all the same.
"""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engines import stubs
from support import upstream

stubs.only_in_the_session_of("aiter")
stubs.for_aiter()
with stubs.aiter_arch("gfx950"):
    import aiter  # noqa: A004 - a library's name
    from aiter.ops import cache as cache_ops
    from aiter.ops import topk
    from aiter.ops.triton.attention import fp8_mqa_logits as dense

    try:
        from aiter.ops.triton.attention import pa_mqa_logits as paged
    except RuntimeError as error:  # Triton 3.5
        paged, why_not = None, str(error)

from capgate.kernels import dropin  # noqa: E402 - after the stubs

needs_paged = pytest.mark.skipif(paged is None, reason="aiter's pa_mqa_logits does not import with this Triton")
DTYPE = torch.float8_e4m3fn  # of gfx950

# The from-imports at the top of ATOM's models/deepseek_v2.py and deepseek_v4.py, which no registry has.
ATOM = """
from aiter import (
    cp_gather_indexer_k_quant_cache,
    indexer_k_quant_and_cache,
    top_k_per_row_decode,
    top_k_per_row_prefill,
)
from aiter.ops.triton.fp8_mqa_logits import fp8_mqa_logits
"""
ATOM_PAGED = "from aiter.ops.triton.pa_mqa_logits import deepgemm_fp8_paged_mqa_logits\n"


@pytest.fixture
def atom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ATOM's imports, made before anything is replaced."""
    upstream.write_module(tmp_path / "atom/models/deepseek_v2.py", ATOM + (ATOM_PAGED if paged else ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    with stubs.aiter_arch("gfx950"):
        yield importlib.import_module("atom.models.deepseek_v2")
    for name in [name for name in sys.modules if name.partition(".")[0] == "atom"]:
        del sys.modules[name]


@pytest.fixture
def report(atom: Any) -> Iterator[dropin.Report]:
    yield dropin.install("aiter")
    dropin.uninstall("aiter")


def test_every_holder_has_ours_and_gets_its_own_back(atom: Any) -> None:
    before = dict(vars(atom))
    places = [(dense, "fp8_mqa_logits"), (topk, "top_k_per_row_prefill"), (topk, "top_k_per_row_decode")]
    places += [(cache_ops, "indexer_k_quant_and_cache"), (cache_ops, "cp_gather_indexer_k_quant_cache")]
    places += [(paged, "deepgemm_fp8_paged_mqa_logits")] if paged else []
    originals = [getattr(module, name) for module, name in places]
    dropin.install("aiter")
    for (module, name), original in zip(places, originals, strict=True):
        assert getattr(module, name) is getattr(atom, name) is not original, name
    assert aiter.top_k_per_row_prefill is topk.top_k_per_row_prefill
    dropin.uninstall("aiter")
    assert [getattr(module, name) for module, name in places] == originals
    assert dict(vars(atom)) == before


def test_what_does_not_import_leaves_the_rest(report: dropin.Report) -> None:
    functions = {name for taken in report.taken for name in taken.functions}
    assert {"fp8_mqa_logits", "top_k_per_row_prefill", "top_k_per_row_decode", "indexer_k_quant_and_cache"} <= functions
    assert ("deepgemm_fp8_paged_mqa_logits" in functions) == (paged is not None)
    if paged is None:
        (left,) = [left for left in report.left if "deepgemm_fp8_paged_mqa_logits" in left.functions]
        assert why_not in left.reason


@pytest.mark.parametrize("parallel", [False, True])
def test_prefill(report: dropin.Report, atom: Any, parallel: bool) -> None:
    """ATOM's names for V3.2, whose logits are cleaned; then as V4 has it, uncleaned."""
    call = upstream.Prefill("cpu", 20, 64, 16, 128, parallel=parallel, dtype=DTYPE)
    operands = {
        "Q": call.q_fp8,
        "KV": call.k_fp8,
        "kv_scales": call.scale[:, None],
        "weights": call.weights,
        "cu_starts": call.ks,
        "cu_ends": call.ke,
    }
    call.judge(atom.fp8_mqa_logits(**operands))
    call.judge(call.spread(atom.fp8_mqa_logits(**operands, clean_logits=False), first_key=False))


@needs_paged
@pytest.mark.parametrize(
    ("block", "preshuffle", "next_n"), [(16, True, 1), (16, True, 2), (64, True, 1), (256, True, 2), (1, False, 2)]
)
def test_decode(report: dropin.Report, atom: Any, block: int, preshuffle: bool, next_n: int) -> None:
    """Into the engine's buffer, which is longer than any request."""
    call = upstream.Decode("cpu", 3, next_n, 16, 128, 60, block, dtype=DTYPE)
    out = torch.full((len(call.weights), 128), float("nan"))
    atom.deepgemm_fp8_paged_mqa_logits(
        call.q_fp8,
        call.cache(tiles=preshuffle).view(DTYPE),
        call.weights,
        out,
        call.lens,
        call.table,
        128,
        KVBlockSize=block,
        Preshuffle=preshuffle,
    )
    beyond = torch.arange(128) >= call.contexts[:, None]
    assert out[beyond].isnan().all()
    call.judge(out.masked_fill(beyond, float("-inf")))


def test_the_cache_is_written_and_gathered(report: dropin.Report, atom: Any) -> None:
    """In tiles, as ATOM has them: what is gathered is what the formula says was written."""
    keys = torch.randn(40, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache = torch.zeros(6, 16, 132, dtype=torch.uint8).view(DTYPE)
    table = torch.tensor([[4, 1, 3]], dtype=torch.int32)
    position = torch.arange(40)
    slots = table[0, position // 16].long() * 16 + position % 16
    atom.indexer_k_quant_and_cache(keys, cache, slots, 128, "ue8m0", preshuffle=True)
    values, scales = torch.zeros(40, 128, dtype=torch.uint8).view(DTYPE), torch.zeros(40, 1)
    lengths = torch.tensor([0, 40], dtype=torch.int32)
    atom.cp_gather_indexer_k_quant_cache(cache, values, scales.view(DTYPE), table, lengths, preshuffle=True)
    scale = (keys.float().abs().amax(1).clamp(min=1e-4) / 448).log2().ceil().exp2()
    assert torch.equal(scales[:, 0], scale)
    assert torch.equal(values.view(torch.uint8), (keys.float() / scale[:, None]).to(DTYPE).view(torch.uint8))


def test_selection(report: dropin.Report, atom: Any) -> None:
    """Prefill's indices are columns, decode's count from a request's first key; -1 behind a row's last."""
    rows, columns, top_k = 5, 64, 8
    logits = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    starts, ends = torch.tensor([0, 3, 60, 7, 20]).int(), torch.tensor([64, 33, 64, 7, 29]).int()
    found = torch.zeros(rows, top_k, dtype=torch.int32)
    atom.top_k_per_row_prefill(logits, starts, ends, found, None, rows, columns, 1, top_k)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        best = logits[row, start:end].topk(min(top_k, end - start)).indices + start
        assert sorted(found[row].tolist(), key=lambda index: (index < 0, index)) == sorted(best.tolist()) + [-1] * (
            top_k - len(best)
        )
    lens = torch.tensor([30, 5], dtype=torch.int32)
    decoded = torch.zeros(4, top_k, dtype=torch.int32)
    atom.top_k_per_row_decode(logits[:4], 2, lens, decoded, 4, columns, 1, top_k)
    for row, seen in enumerate([29, 30, 4, 5]):
        best = logits[row, :seen].topk(min(top_k, seen)).indices
        assert {index for index in decoded[row].tolist() if index >= 0} == set(best.tolist())


def test_flydsl_s_functions_stay_aiter_s(report: dropin.Report) -> None:
    """What vLLM calls for prefill on gfx942, and ATOM's V4 and SGLang on gfx950: their names are others."""
    assert not [taken for taken in report.taken if any("flydsl" in place for place in taken.places)]
