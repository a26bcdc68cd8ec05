"""The upstream projects' tests through the drop-ins, on CPU tensors; tests/gpu has them in upstream's sizes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from capgate import compat
from support import upstream

FN = torch.float8_e4m3fn
# Of upstream's small grid; all of it is asked of the functions themselves.
SIZES = pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 113), (17, 76)], ids=str)


@pytest.fixture(autouse=True)
def _through_the_dropins(tmp_path: Path, variant: str) -> Iterator[None]:
    """Every drop-in installed, and every call on one variant."""
    named = dict.fromkeys(("fp8_mqa_logits", "fp8_paged_mqa_logits"), variant)
    with upstream.installed(tmp_path), compat.override(variant=named):
        yield


def prefill(rows: int, keys: int, heads: int = 64, dim: int = 128, parallel: bool = False) -> "upstream.Prefill":
    return upstream.Prefill("cpu", rows, keys, heads, dim, parallel=parallel, dtype=FN)


@pytest.mark.dealt("clean_logits")
@SIZES
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
def test_aiter_prefill(rows: int, keys: int, clean_logits: bool) -> None:
    upstream.aiter_mqa_logits(prefill(rows, keys, dim=64), clean_logits=clean_logits)


@pytest.mark.parametrize(("rows", "keys", "generation"), [(1, 1, "intermediate"), (1, 113, "sgl"), (17, 76, "intermediate")])
def test_deep_gemm_prefill(rows: int, keys: int, generation: str) -> None:
    upstream.deep_gemm_mqa_logits(prefill(rows, keys), compressed=False, generation=generation)


@pytest.mark.parametrize(("rows", "keys", "generation"), [(1, 16, "current"), (17, 76, "current"), (17, 76, "sgl")])
def test_deep_gemm_prefill_compressed(rows: int, keys: int, generation: str) -> None:
    upstream.deep_gemm_mqa_logits(prefill(rows, keys, heads=32), compressed=True, generation=generation)


@pytest.mark.dealt
@SIZES
def test_vllm_prefill(rows: int, keys: int) -> None:
    upstream.vllm_mqa_logits(prefill(rows, keys, heads=32, dim=64))


@pytest.mark.parametrize(
    ("compressed", "generation"),
    [(True, "current"), (True, "intermediate"), (False, "sgl")],
    ids=["2.8", "compressed", "logits"],
)
def test_deep_gemm_prefill_of_one_rank_of_several(compressed: bool, generation: str) -> None:
    upstream.deep_gemm_mqa_logits(prefill(20, 120, parallel=True), compressed=compressed, generation=generation)


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
def test_aiter_prefill_of_one_rank_of_several(clean_logits: bool) -> None:
    upstream.aiter_mqa_logits(prefill(20, 120, heads=32, parallel=True), clean_logits=clean_logits)


def decode(next_n: int, block: int, two_d: bool = False, mean: int = 150) -> "upstream.Decode":
    return upstream.Decode("cpu", 5, next_n, 32, 64, mean, block, two_d=two_d, dtype=FN)


@pytest.mark.dealt("two_d", "generation")
@pytest.mark.parametrize(
    ("next_n", "block", "two_d", "generation"),
    [
        (1, 64, False, "sgl"),
        (1, 64, True, "current"),
        (2, 64, False, "intermediate"),
        (2, 32, True, "current"),
        (2, 64, True, "sgl"),
        (4, 64, True, "current"),
    ],
)
def test_deep_gemm_decode(next_n: int, block: int, two_d: bool, generation: str) -> None:
    upstream.deep_gemm_paged_mqa_logits(decode(next_n, block, two_d), 300, generation)


@pytest.mark.dealt("next_n", "preshuffle")
@pytest.mark.parametrize(("block", "preshuffle"), [(1, False), (64, False), (16, True), (32, True), (64, True), (256, True)])
@pytest.mark.parametrize("next_n", [1, 3])
def test_aiter_decode(next_n: int, block: int, preshuffle: bool) -> None:
    upstream.aiter_paged_mqa_logits(decode(next_n, block), 400, preshuffle=preshuffle)


@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
def test_aiter_decode_from_a_cache_with_padded_rows(preshuffle: bool) -> None:
    """ATOM rounds the 132 bytes of a key up to 144: the room is at the end of each block."""
    upstream.aiter_paged_mqa_logits(decode(2, 16), 256, preshuffle=preshuffle, width=80)


@pytest.mark.dealt("compress_ratio", "two_d")
@pytest.mark.parametrize("two_d", [True, False], ids=["row-lengths", "lengths"])
@pytest.mark.parametrize("compress_ratio", [1, 4])
@pytest.mark.parametrize(("next_n", "block"), [(1, 1), (1, 64), (2, 64)])
def test_vllm_decode(next_n: int, block: int, compress_ratio: int, two_d: bool) -> None:
    upstream.vllm_paged_mqa_logits(decode(next_n, block, two_d), 300, compress_ratio)
