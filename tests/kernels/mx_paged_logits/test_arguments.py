"""What mx_paged_mqa_logits refuses beyond its table of operands, and its operators."""

import re
from typing import Any

import pytest
import torch

from capgate.kernels import mx_paged_mqa_logits, mx_paged_mqa_workers
from support.mx_paged import make_call

pytestmark = pytest.mark.any_triton


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        (
            {"kv_cache": torch.zeros(4, 64, 1, 132, dtype=torch.uint8)},
            {},
            "kv_cache: got keys of 132 bytes, needs 68 (mxfp8) or 36",
        ),
        ({"q": torch.zeros(2, 1, 16, 128, dtype=torch.uint8)}, {}, "q: got D 256 in mxfp4 (torch.uint8), needs 64 or 128"),
        ({}, {"layout": "rows"}, "layout: got 'rows', needs 'flat', 'preshuffled', 'gluon-16', 'gluon-32' or 'flydsl'"),
        (
            {},
            {"layout": "flydsl"},
            "kv_cache: got shape (5, 64, 1, 36), needs [num_blocks, 1, chunks, block, bytes] with block",
        ),
        ({}, {"kv_scale": torch.zeros(4, 1, 2, 64).byte()}, "kv_scale: got Tensor, needs None: flat blocks hold the scales"),
        ({}, {"layout": "gluon-32"}, "layout: got 'gluon-32', which has D 128, needs one with D 64"),
        (
            {"kv_cache": torch.zeros(4, 1, 1, 36, dtype=torch.uint8)},
            {"layout": "preshuffled"},
            "kv_cache: got blocks of 1 keys",
        ),
        ({"kv_cache": torch.zeros(4, 64, 1, 72, dtype=torch.uint8)[..., :36]}, {}, "kv_cache: got strides (4608, 72, 72, 1)"),
        ({}, {"schedule_chunk_keys": 64}, "schedule_chunk_keys: got 64, needs 128 or 256"),
    ],
)
def test_caches_and_layouts_that_do_not_go_together_are_refused(
    changes: dict[str, torch.Tensor], options: dict[str, Any], words: str
) -> None:
    call, out = make_call([70, 5], 1, 16, 64), torch.full((2, 80), 7.0)
    with pytest.raises(ValueError, match=re.escape(words)):
        mx_paged_mqa_logits(*call._replace(**changes), max_context_len=80, out=out, **options)
    assert (out == 7.0).all()


@pytest.mark.parametrize(
    ("cache", "scale", "options", "words"),
    [
        ((5, 1, 4, 64, 16), None, {"layout": "flat"}, "kv_cache: got shape (5, 1, 4, 64, 16), needs [num_blocks, block, 1, W]"),
        ((5, 1, 4, 32, 16), (5, 1, 4, 32), {}, "kv_cache: got shape (5, 1, 4, 32, 16), needs"),
        ((5, 1, 2, 64, 16), (5, 1, 2, 64), {}, "kv_cache: got shape (5, 1, 2, 64, 16), needs"),
        ((5, 1, 4, 64, 8), (5, 1, 4, 64), {}, "kv_cache: got shape (5, 1, 4, 64, 8), needs"),
        ((5, 1, 4, 64, 16), (5, 1, 4, 32), {}, "kv_scale: got shape (5, 1, 4, 32), needs [5, 1, 4, 64]"),
        ((5, 1, 4, 64, 16), None, {}, "kv_scale: got NoneType, needs a torch.Tensor"),
    ],
)
def test_scales_apart_that_do_not_go_with_their_cache_are_refused(
    cache: tuple[int, ...], scale: tuple[int, ...] | None, options: dict[str, Any], words: str
) -> None:
    call, out = make_call([70, 5], 1, 16, 128), torch.full((2, 80), 7.0)
    kv_cache, kv_scale = torch.zeros(cache).byte(), scale and torch.zeros(scale).byte()
    options = {"layout": "flydsl", **options}
    with pytest.raises((TypeError, ValueError), match=re.escape(words)):
        mx_paged_mqa_logits(*call._replace(kv_cache=kv_cache), max_context_len=80, out=out, kv_scale=kv_scale, **options)
    assert (out == 7.0).all()


def test_pages_of_other_dims_or_out_of_place_are_refused() -> None:
    call = make_call([70, 5], 1, 16, 64)
    parts = torch.zeros(5, 1, 4, 64, 16).byte(), torch.zeros(5, 1, 4, 64).byte()
    options: dict[str, Any] = {"max_context_len": 80, "layout": "flydsl"}
    with pytest.raises(ValueError, match="kv_cache: got keys of D 128, which layout 'flydsl' has, needs q's 64"):
        mx_paged_mqa_logits(*call._replace(kv_cache=parts[0]), kv_scale=parts[1], **options)
    call = make_call([70, 5], 1, 16, 128)
    turned = parts[1].transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match=r"kv_scale: got strides \(256, 256, 1, 4\), needs blocks of adjacent bytes"):
        mx_paged_mqa_logits(*call._replace(kv_cache=parts[0]), kv_scale=turned, **options)


def test_scales_apart_of_a_cache_without_blocks() -> None:
    call = make_call([70, 5], 1, 16, 128)
    parts = torch.zeros(0, 1, 4, 64, 16, dtype=torch.uint8), torch.zeros(0, 1, 4, 64, dtype=torch.uint8)
    options = {"layout": "flydsl", "max_context_len": 80, "clean_logits": True, "variant": "reference"}
    logits = mx_paged_mqa_logits(*call._replace(kv_cache=parts[0]), kv_scale=parts[1], **options)
    assert (logits == float("-inf")).all()


def test_operators_pass_opcheck_and_compile() -> None:
    call = make_call([11, 11], 1, 16, 64, 16)
    options = (False, "reference", 128, "flat")
    torch.library.opcheck(torch.ops.capgate.mx_paged_mqa_logits, (*call, None, None, 11, torch.float32, *options))
    torch.library.opcheck(torch.ops.capgate.mx_paged_mqa_logits_out, (*call, None, None, torch.zeros(2, 14)[:, :11], *options))

    def scored(*operands: torch.Tensor) -> torch.Tensor:
        return mx_paged_mqa_logits(*operands, max_context_len=11) * 2

    torch._dynamo.reset()
    assert torch.equal(torch.compile(scored, backend="eager", fullgraph=True)(*call), scored(*call))
    assert mx_paged_mqa_workers(call.q, call.kv_cache, variant="reference") == 1
