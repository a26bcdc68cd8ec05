"""vLLM's operators for the key cache over ours, and where they are found."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capgate.kernels import dropin
from capgate.kernels.dropin import aiter, vllm, vllm_rocm  # noqa: A004 - a library's name
from capgate.kernels.dropin.families import NotServed
from support import engine_keys, upstream

FN = torch.float8_e4m3fn


@pytest.mark.parametrize("scale_fmt", ["ue8m0", "fp32", ""])
@pytest.mark.parametrize(("block", "gap"), [(64, 0), (16, 576)])
def test_keys_are_written_flat(block: int, gap: int, scale_fmt: str) -> None:
    """Any other format than two has scales as they come; a shared pool's blocks lie further apart."""
    write = vllm.indexer_k_quant_and_cache
    engine_keys.check_written(write, layout="flat", scale_fmt=scale_fmt, block=block, gap=gap, dtype=torch.uint8)


@pytest.mark.parametrize(("block", "gap"), [(64, 0), (16, 576), (128, 512)])
@pytest.mark.parametrize("scale_dtype", [torch.uint8, torch.float32], ids=str)
def test_keys_are_gathered_and_rows_behind_them_stay(block: int, gap: int, scale_dtype: torch.dtype) -> None:
    gather = vllm.cp_gather_indexer_k_quant_cache
    engine_keys.check_gathered(gather, layout="flat", block=block, gap=gap, scale_dtype=scale_dtype)


WRITERS = {
    "vllm": (vllm.indexer_k_quant_and_cache, 224),
    "vllm_rocm": (vllm_rocm.indexer_k_quant_and_cache_triton, 224),
    "aiter": (aiter.indexer_k_quant_and_cache, 240),
}


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, FN, torch.uint8], ids=str)
@pytest.mark.parametrize("scale_fmt", ["ue8m0", "fp32"])
@pytest.mark.parametrize(("write", "largest"), WRITERS.values(), ids=WRITERS)
def test_the_largest_value_is_each_library_s_own(
    write: Callable[..., None], largest: int, scale_fmt: str, dtype: torch.dtype
) -> None:
    """On gfx942 vLLM leaves 240 out; elsewhere it is 448 for both. The caches of the two differ, byte by byte."""
    k = torch.randn(9, 128, generator=torch.Generator().manual_seed(0)).bfloat16() * 3
    cache = torch.zeros(9, 1, 132, dtype=torch.uint8)
    write(k, cache.view(dtype), torch.arange(9), 128, scale_fmt)
    scale = k.float().abs().amax(-1).clamp(min=1e-4) / (largest if dtype == torch.float8_e4m3fnuz else 448)
    if scale_fmt == "ue8m0":
        scale = scale.log2().ceil().exp2()
    kind = FN if dtype == torch.uint8 else dtype  # what this machine reads
    assert torch.equal(cache[:, 0, :128], (k.float() / scale[:, None]).to(kind).view(torch.uint8))
    assert torch.equal(cache[:, 0, 128:].contiguous().view(torch.float32)[:, 0], scale)


def test_what_is_left_to_vllm() -> None:
    """A byte for a scale, and 64 bytes of 4-bit values with their four scales."""
    cache, slots = torch.zeros(2, 64, 132, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(NotServed, match=r"^scales of the format mxfp8$"):
        vllm.indexer_k_quant_and_cache(torch.zeros(1, 128), cache, slots, 128, "mxfp8")
    cache, table, sums = torch.zeros(2, 64, 68, dtype=torch.uint8), torch.zeros(1, 1).int(), torch.tensor([0, 1]).int()
    keys, scales = torch.zeros(1, 64, dtype=torch.uint8), torch.zeros(1, 4, dtype=torch.uint8)
    with pytest.raises(NotServed, match=r"^keys of 4-bit values$"):
        vllm.cp_gather_indexer_k_quant_cache(cache, keys, scales, table, sums)
    vllm.cp_gather_indexer_k_quant_cache(cache, keys.view(FN), scales, table, sums)


def test_the_operators_are_replaced_in_their_namespace(tmp_path: Path) -> None:
    """Whoever calls them through torch.ops gets ours; what ours does not serve goes to the operator, arguments and all."""
    with upstream.only_from(tmp_path):
        upstream.write_packages(tmp_path)
        home = importlib.import_module("vllm._custom_ops")
        space, called = home.torch.ops._C_cache_ops, []
        space.indexer_k_quant_and_cache = original = lambda *arguments: called.append(arguments)
        report = dropin.install("vllm")
        assert not report.left
        assert space.indexer_k_quant_and_cache is not original
        k, cache, slots = torch.ones(1, 128), torch.zeros(2, 64, 132, dtype=torch.uint8), torch.tensor([5])
        space.indexer_k_quant_and_cache(k, cache, slots, 128, "ue8m0")
        assert not called
        assert cache.any()
        cache.zero_()
        space.indexer_k_quant_and_cache(k, cache, slots, 128, "mxfp8")
        ((*given, format_),) = called
        assert format_ == "mxfp8"
        assert all(one is other for one, other in zip(given[:3], (k, cache, slots), strict=True))
        assert not cache.any()
        dropin.uninstall("vllm")
        assert space.indexer_k_quant_and_cache is original


def test_a_vllm_without_these_operators(tmp_path: Path) -> None:
    """They are left, each with its reason, and the other is taken."""
    with upstream.only_from(tmp_path):
        upstream.write_packages(tmp_path)
        home = importlib.import_module("vllm._custom_ops")
        del home.torch.ops._C_cache_ops.cp_gather_indexer_k_quant_cache
        report = dropin.install("vllm")
        assert "indexer_k_quant_and_cache" in {function for one in report.taken for function in one.functions}
        left = {function: one.reason for one in report.left for function in one.functions}
        assert left == {"cp_gather_indexer_k_quant_cache": "vllm._custom_ops offers no such function"}
    assert "vllm._custom_ops" not in sys.modules
