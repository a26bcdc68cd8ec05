"""Preshuffled caches, and blocks of every size, on a GPU: written, gathered and scored as flat ones are."""

import pytest
import torch

from capgate.kernels import fp8_paged_mqa_logits, gather_keys, quantize_keys_to_cache, select_paged_keys
from capgate.kernels.key_cache.api import gather_keys_between
from capgate.kernels.paged_mqa_logits.api import describe
from capgate.kernels.paged_mqa_logits.operands import Inputs
from capgate.kernels.paged_mqa_logits.operation import operation
from capgate.kernels.quantize import quantize_keys
from support import paged, taking

pytestmark = pytest.mark.gpu

LENS = [1500, 0, 64, 1, 129, 260, 3000, 33]
LAYOUTS = ("flat", "preshuffled")


@pytest.fixture(params=list(operation.variants))
def variant(request: pytest.FixtureRequest, gpu: torch.device) -> str:
    """Every variant that takes a serving call on this GPU."""
    return taking.taken(operation, operation.example(gpu), request.param)


def taken(variant: str, call: paged.PagedCall, layout: str) -> None:
    """Skip the test, with the reason, where the variant does not take such a call."""
    taking.taken(operation, describe(Inputs(*call), False, layout=layout), variant)


@pytest.mark.parametrize("block", [16, 48, 64, 96, 112, 192, 256])
@pytest.mark.parametrize(("heads", "dim", "next_n"), [(64, 128, 1), (64, 128, 2), (32, 64, 3), (16, 32, 8)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_block_in_every_layout(
    variant: str, fp8: torch.dtype, block: int, heads: int, dim: int, next_n: int, layout: str
) -> None:
    call = paged.make_call(LENS, next_n, heads, dim, block, gap=16, layout=layout, dtype=fp8, device="cuda")
    taken(variant, call, layout)
    paged.check(call, variant, 3000, clean_logits=True, layout=layout)
    paged.check(paged.without_blocks(call), variant, 2990, layout=layout)


def test_both_layouts_give_the_same_bits(fp8: torch.dtype, gpu: torch.device) -> None:
    """On the variant that takes both, classic: the same products in the same order."""
    calls = {layout: paged.make_call(LENS, 2, 64, 128, layout=layout, dtype=fp8, device="cuda") for layout in LAYOUTS}
    taken("classic", calls["preshuffled"], "preshuffled")
    keywords = {"max_context_len": 3000, "clean_logits": True, "variant": "classic"}
    flat, tiles = (fp8_paged_mqa_logits(*call, **keywords, layout=layout) for layout, call in calls.items())
    assert torch.equal(flat.view(torch.int32), tiles.view(torch.int32))
    keywords = {"max_context_len": 3000, "top_k": 64, "logits_variant": "classic"}
    flat, tiles = (select_paged_keys(*call, **keywords, layout=layout) for layout, call in calls.items())
    assert torch.equal(flat, tiles)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("block", [16, 64, 80, 256])
def test_written_gathered_and_nothing_allocated(fp8: torch.dtype, block: int, layout: str) -> None:
    generator = torch.Generator("cuda").manual_seed(block)
    lens = torch.tensor([700, 0, 333], dtype=torch.int32, device="cuda")
    k = torch.randn(1033, 128, generator=generator, device="cuda").bfloat16()
    blocks = -(-700 // block)
    table = torch.randperm(3 * blocks, generator=generator, device="cuda").int().view(3, blocks)
    position = torch.cat([torch.arange(int(count), device="cuda") for count in lens])
    request = torch.repeat_interleave(torch.arange(3, device="cuda"), lens.long())
    cache = torch.zeros(3 * blocks, block, 1, 132, dtype=torch.uint8, device="cuda")
    quantize_keys_to_cache(k, cache, table[request, position // block] * block + position % block, dtype=fp8, layout=layout)
    out = torch.zeros(1100, 128, dtype=torch.uint8, device="cuda").view(fp8), torch.zeros(1100, device="cuda")
    sums = torch.tensor([0, 700, 700, 1033], dtype=torch.int32, device="cuda")

    def gather() -> None:
        gather_keys(cache, table, lens, 1100, dtype=fp8, layout=layout, out=out)
        gather_keys_between(cache, table, sums, *out, layout=layout)

    gather()  # compiles
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()["allocation.all.allocated"]
    gather()
    assert torch.cuda.memory_stats()["allocation.all.allocated"] == before
    for result, expected in zip(out, quantize_keys(k, fp8), strict=True):
        assert torch.equal(result[:1033].view(torch.uint8), expected.view(torch.uint8))
        assert not result[1033:].float().any()
