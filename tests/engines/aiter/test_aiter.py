"""aiter's own modules under their old and new names, and calls as ATOM's models make them.

Of a Triton before 3.6 aiter imports nothing but with AITER_USE_SYSTEM_TRITON=1, as the session sets it.
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
    from aiter.ops.triton.attention import pa_mqa_logits as paged

from capgate.kernels import dropin  # noqa: E402 - after the stubs

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
from aiter.ops.triton.pa_mqa_logits import deepgemm_fp8_paged_mqa_logits
"""


@pytest.fixture
def atom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ATOM's imports, made before anything is replaced."""
    upstream.write_module(tmp_path / "atom/models/deepseek_v2.py", ATOM)
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
    places += [(paged, "deepgemm_fp8_paged_mqa_logits")]
    originals = [getattr(module, name) for module, name in places]
    dropin.install("aiter")
    # aiter runs a module again where it is imported by its old name: there may be two originals, and one of ours for each.
    for module, name in [*places, *((atom, name) for _, name in places)]:
        assert getattr(module, name).__module__.startswith("capgate."), (module, name)
    assert aiter.top_k_per_row_prefill is topk.top_k_per_row_prefill
    dropin.uninstall("aiter")
    assert [getattr(module, name) for module, name in places] == originals
    assert dict(vars(atom)) == before


def test_every_family_is_taken(report: dropin.Report) -> None:
    """But for what this aiter does not have yet."""
    families = [family.functions[0] for family in dropin.DROPINS["aiter"]]
    later = "paged_mxfp4_mqa_logits"
    assert [taken.functions[0] for taken in report.taken] == [name for name in families if name != later]
    assert [(left.functions, left.reason) for left in report.left] == [
        ((later,), "no module aiter.ops.triton.attention.pa_mqa_logits_mxfp4 is there")
    ]


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
