"""Layouts and block sizes of caches: which variants read them, what is refused, and selections from them."""

import re
from typing import Any

import pytest
import torch

from capgate.kernels import (
    fp8_paged_mqa_logits,
    gather_keys,
    paged_mqa_schedule,
    paged_mqa_workers,
    quantize_keys_to_cache,
    select_paged_keys,
)
from capgate.kernels.common.key_formats import BLOCK_SIZES
from capgate.kernels.paged_mqa_logits.operation import operation
from support import paged


def chosen(target: str, **of_problem: Any) -> str:
    """Which variant takes the call there; the reference where no Triton is installed that could compile another."""
    trace = operation.explain(operation.example(target)._replace(**of_problem))
    refused = {step.variant: str(step.reason) for step in trace.steps if not step.accepted}
    return f"{trace.variant}: {refused.get('gluon_hopper', '')}"


def test_hopper_leaves_preshuffled_caches_to_classic() -> None:
    flat, preshuffled = chosen("cuda:90"), chosen("cuda:90", layout="preshuffled")
    if not flat.startswith("gluon_hopper"):
        pytest.skip(flat)
    assert preshuffled.startswith("classic: needs a flat cache")
    assert preshuffled.endswith("found a preshuffled one")


@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_every_block_has_a_variant_of_its_gpu(block: int) -> None:
    """gluon_cdna4 reads every one, in either layout; gluon_hopper those of whole pieces of 32 keys."""
    hopper, cdna4 = chosen("cuda:90"), chosen("hip:gfx950")
    if hopper.startswith("gluon_hopper"):
        expected = "gluon_hopper: " if block % 32 == 0 else f"classic: needs blocks of a multiple of 32 keys, .* found {block}"
        assert re.fullmatch(expected, chosen("cuda:90", block_size=block))
    if cdna4.startswith("gluon_cdna4"):
        for layout in ("flat", "preshuffled") if block > 1 else ("flat",):
            assert chosen("hip:gfx950", block_size=block, layout=layout).startswith("gluon_cdna4")


@pytest.mark.parametrize("layout", ["flat", "preshuffled"])
def test_the_keys_that_are_selected(variant: str, layout: str) -> None:
    call = paged.make_call([150, 0, 33], 2, 16, 32, 48, layout=layout)
    indices = select_paged_keys(*call, max_context_len=150, top_k=8, layout=layout, logits_variant=variant)
    answer = paged.formula(call, 150, layout)
    logits = answer.logits.masked_fill(~answer.inside, float("-inf"))
    for row, found in enumerate(indices):
        expected = logits[row].topk(8).indices[: int(answer.inside[row].sum())].sort().values
        assert found[: len(expected)].tolist() == expected.tolist()
        assert (found[len(expected) :] == -1).all()


def arguments() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Each function that takes a layout, and a good call of it with blocks of 16 keys."""
    call = paged.make_call([20, 5], block=16)._asdict()
    cache = call["kv_cache"].contiguous()
    of_keys = {"kv_cache": cache, "block_table": call["block_table"], "lens": call["context_lens"], "total": 25}
    writes = {"k": torch.zeros(3, 32), "kv_cache": cache, "slot_mapping": torch.zeros(3, dtype=torch.int32)}
    return {
        "logits": (fp8_paged_mqa_logits, {**call, "max_context_len": 20}),
        "selection": (select_paged_keys, {**call, "max_context_len": 20, "top_k": 2}),
        "workers": (paged_mqa_workers, {"q": call["q"], "kv_cache": cache}),
        "write": (quantize_keys_to_cache, writes),
        "gather": (gather_keys, of_keys),
    }


@pytest.mark.parametrize("name", arguments())
def test_layouts_that_are_none(name: str) -> None:
    function, good = arguments()[name]
    for layout in ("flat", "preshuffled"):
        function(**good, layout=layout)
    with pytest.raises(ValueError, match=r"^layout: got 'tiled', needs 'flat' or 'preshuffled'"):
        function(**good, layout="tiled")
    for value in (None, 16, True):
        with pytest.raises(TypeError, match=rf"^layout: got {type(value).__name__}, needs 'flat' or 'preshuffled'"):
            function(**good, layout=value)
    alone = torch.zeros(4, 1, 1, 36, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^kv_cache: got blocks of 1 keys, needs a multiple of 16 in a preshuffled cache"):
        function(**good | {"kv_cache": alone}, layout="preshuffled")


def test_sizes_of_blocks_that_no_cache_has() -> None:
    lens = torch.ones(2, dtype=torch.int32)
    for block in BLOCK_SIZES:
        paged_mqa_schedule(lens, block, 2)
    for block in (2, 8, 15, 17, 24, 100, 272, 512):
        with pytest.raises(ValueError, match=rf"^block_size: got {block}, needs 1 or a multiple of 16 up to 256"):
            paged_mqa_schedule(lens, block, 2)
        cache = torch.zeros(2, block, 1, 36, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"^kv_cache: got shape .* with block 1 or a multiple of 16 up to 256"):
            paged_mqa_workers(torch.zeros(2, 1, 16, 32).to(torch.float8_e4m3fn), cache)
