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
        ({}, {"layout": "flydsl"}, "layout: got 'flydsl', needs 'flat', 'preshuffled', 'gluon-16' or 'gluon-32'"),
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


def test_operators_pass_opcheck_and_compile() -> None:
    call = make_call([11, 11], 1, 16, 64, 16)
    options = (False, "reference", 128, "flat")
    torch.library.opcheck(torch.ops.capgate.mx_paged_mqa_logits, (*call, None, 11, torch.float32, *options))
    torch.library.opcheck(torch.ops.capgate.mx_paged_mqa_logits_out, (*call, None, torch.zeros(2, 14)[:, :11], *options))

    def scored(*operands: torch.Tensor) -> torch.Tensor:
        return mx_paged_mqa_logits(*operands, max_context_len=11) * 2

    torch._dynamo.reset()
    assert torch.equal(torch.compile(scored, backend="eager", fullgraph=True)(*call), scored(*call))
    assert mx_paged_mqa_workers(call.q, call.kv_cache, variant="reference") == 1
