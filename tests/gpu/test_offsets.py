"""Known bug 5: 32-bit offset overflow. Logits, k and q with offsets past 2**31, against the formula where it is computable."""

import pytest
import torch

from capgate.kernels import fp8_mqa_logits
from support import judge

pytestmark = pytest.mark.gpu

# A 32-bit element offset ends at 2**31 elements; AMD's buffer instructions and byte offsets at 2 GiB.
EDGE = 2**31


def needs(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 1e9:
        pytest.skip(f"needs {gigabytes} GB of GPU memory, {free / 1e9:.1f} GB are free")


def random_fp8(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Random bytes, without the NaNs of either format, at a byte each."""
    octets = torch.randint(0, 256, shape, dtype=torch.uint8, device="cuda")
    for part in octets.split(max(1, 2**27 // max(1, octets[0].numel()))):
        part[(part & 0x7F) == 0x7F] = 0x7E
        part[part == 0x80] = 0
    return octets.view(dtype)


def around(edge: int, size: int) -> list[int]:
    """Indices at both ends, on both sides of an edge, and in between."""
    near = [0, 1, edge - 1, edge, edge + 1, size // 3, size - 2, size - 1]
    return sorted({index for index in near if 0 <= index < size})


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize(("rows", "keys"), [(16400, 33000), (65600, 33000)], ids=["2-GiB", "2**31-cells"])
def test_logits(variant: str, fp8: torch.dtype, rows: int, keys: int, clean_logits: bool) -> None:
    needs(6 * rows * keys / 1e9)
    call, untouched = judge.make_call(rows, keys, 16, 32, dtype=fp8, device="cuda"), 1e30
    starts = torch.arange(rows, dtype=torch.int32, device="cuda") % 7
    call = call._replace(starts=starts, ends=torch.full_like(starts, keys - 5))
    out = torch.full((rows, 33024), untouched, device="cuda")[:, :keys]
    fp8_mqa_logits(*call, out=out, clean_logits=clean_logits, variant=variant)
    sample = around(EDGE // (out.stride(0) * (4 if rows * keys < EDGE else 1)), rows)
    answer = judge.formula(call, rows=sample)
    logits = out[sample]
    outside = float("-inf") if clean_logits else untouched
    assert (logits[~answer.inside] == outside).all()
    judge.agree(logits[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside], variant != "reference")
    # And in all rows: as many cells outside the windows as there should be, and nothing written beyond the keys.
    assert sum(int((part == outside).sum()) for part in out.split(4096)) == int((starts.long() + 5).sum())
    assert (out.as_strided((rows, 24), (33024, 1), keys) == untouched).all()


def test_keys(variant: str, fp8: torch.dtype) -> None:
    needs(8)
    rows, keys, edge = 5, 2**24 + 8195, EDGE // 128
    call = judge.make_call(rows, 1, 64, 128, dtype=fp8, device="cuda")
    k, k_scale = random_fp8(keys, 128, dtype=fp8), torch.rand(keys, device="cuda") + 0.5
    starts = torch.full((rows,), 3, dtype=torch.int32, device="cuda")
    out = fp8_mqa_logits(call.q, k, k_scale, call.weights, starts, starts + (keys - 5), variant=variant)
    assert out[:, :3].isneginf().all()
    assert out[:, -2:].isneginf().all()
    assert out[:, 3:-2].isfinite().all()
    sample = torch.cat([torch.tensor(around(edge, keys)), torch.randint(edge, keys, (500,)), torch.randint(0, edge, (500,))])
    sample = sample[(sample >= 3) & (sample < keys - 2)].to("cuda")
    chosen = call._replace(k=k.view(torch.uint8)[sample].view(fp8), k_scale=k_scale[sample])
    answer = judge.formula(chosen._replace(starts=starts * 0, ends=starts * 0 + len(sample)))
    judge.agree(out[:, sample], answer.logits, answer.magnitude, variant != "reference")


def test_queries(variant: str, fp8: torch.dtype) -> None:
    needs(8)
    rows, keys, edge = 262_200, 45, EDGE // (64 * 128)
    call = judge.make_call(1, keys, 64, 128, dtype=fp8, device="cuda")
    q, weights = random_fp8(rows, 64, 128, dtype=fp8), torch.randn(rows, 64, device="cuda")
    starts = torch.arange(rows, dtype=torch.int32, device="cuda") % 11
    call = call._replace(q=q, weights=weights, starts=starts, ends=starts + 30)
    out = fp8_mqa_logits(*call, variant=variant)
    column = torch.arange(keys, device="cuda")
    assert torch.equal(out.isneginf(), (column < starts[:, None]) | (column >= starts[:, None] + 30))
    sample = [*around(edge, rows), *range(edge + 2, rows, 3)]
    answer = judge.formula(call, rows=sample)
    logits = out[sample]
    judge.agree(logits[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside], variant != "reference")
