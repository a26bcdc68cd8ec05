"""aiter's functions over ours: what upstream's own tests do not ask."""

from functools import partial
from typing import Any

import pytest
import torch

from capgate.kernels.dropin import aiter  # noqa: A004 - a library's name
from capgate.kernels.dropin.families import NotServed
from support import engine_keys, upstream

FN = torch.float8_e4m3fn


@pytest.fixture
def decode() -> upstream.Decode:
    return upstream.Decode("cpu", 3, 2, 32, 64, 100, 32, dtype=FN)


def aiter_paged(call: upstream.Decode, out: torch.Tensor, columns: int, **keywords: Any) -> None:
    cache = call.cache(tiles=keywords.get("Preshuffle", False))
    arguments = (call.q_fp8, cache, call.weights, out, call.lens, call.table, columns)
    assert aiter.deepgemm_fp8_paged_mqa_logits(*arguments, **{"KVBlockSize": call.block, **keywords}) is None


def test_aiter_writes_into_a_part_of_the_engines_buffer(decode: upstream.Decode) -> None:
    buffer = torch.full((8, 500), 7.0)
    aiter_paged(decode, buffer[:, :300], 200)
    assert (buffer[6:] == 7).all()
    assert (buffer[:, 200:] == 7).all()
    beyond = torch.arange(200) >= decode.contexts[:, None]
    assert (buffer[:6, :200][beyond] == 7).all()
    decode.judge(buffer[:6, :200].masked_fill(beyond, float("-inf")))


@pytest.mark.parametrize("columns", [1, 2, 3, 4, 5, 40])
@pytest.mark.parametrize("next_n", [1, 2, 4])
@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
def test_aiter_masks_the_keys_of_later_drafts(next_n: int, columns: int, preshuffle: bool) -> None:
    """Cells that only later rows of a request see are -inf, others are left: also for fewer keys than drafts, and more than
    columns. Each cell is asked for on its own."""
    lens = [0, 1, 2, 3, 4, 5, 6, 39, 41]
    call = upstream.Decode("cpu", len(lens), next_n, 32, 64, 41, 16, dtype=FN)
    call.lens = torch.tensor(lens, dtype=torch.int32)
    out = torch.full((len(lens) * next_n, columns), 7.0)
    aiter_paged(call, out, columns, Preshuffle=preshuffle)
    for request, context in enumerate(lens):
        for draft in range(next_n):
            row, seen = out[request * next_n + draft], max(0, context - next_n + 1 + draft)
            assert torch.isfinite(row[:seen]).all()
            assert (row[:seen] != 7).all()
            assert (row[seen:context] == float("-inf")).all()
            assert (row[context:] == 7).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"KVBlockSize": 64}, "KVBlockSize: got 64, needs kv_cache's 32"),
        ({"q_fp8": torch.zeros(6, 32, 64).to(FN)}, r"q_fp8: got shape \(6, 32, 64\), needs \[B, next_n, H, D\]"),
        ({"q_fp8": [1.0]}, "q_fp8: got list, needs a torch.Tensor"),
        ({"out_logits": [1.0]}, "out_logits: got list, needs a torch.Tensor"),
        ({"max_model_len": True}, "max_model_len: got bool, needs an int"),
        ({"max_model_len": 200.0}, "max_model_len: got float, needs an int"),
        ({"max_model_len": -1}, "max_model_len: got -1, needs 0 or more"),
        ({"KVBlockSize": True}, "KVBlockSize: got bool, needs an int"),
        ({"out_logits": torch.zeros(5, 200)}, r"out_logits: got shape \(5, 200\), needs \[6, 200\] or more"),
        ({"out_logits": torch.zeros(6, 199)}, r"out_logits: got shape \(6, 199\), needs \[6, 200\] or more"),
        ({"kv_cache": torch.zeros(4, 32, 1, 34).half()}, "kv_cache: got torch.float16, needs .* one byte"),
        ({"kv_cache": torch.zeros(4, 32, 1, 60).byte()}, r"kv_cache: got shape \(4, 32, 1, 60\), needs"),
        ({"kv_cache": torch.zeros(4, 32, 1, 160).byte()[..., :80]}, "kv_cache: got strides .*, needs blocks of adjacent bytes"),
        ({"kv_cache": (1, 2)}, "kv_cache: got tuple, needs a torch.Tensor"),
        ({"kv_indices": torch.zeros(3, 4).long(), "Preshuffle": True}, "block_table: got torch.int64, needs torch.int32"),
        ({"context_lens": torch.ones(3), "Preshuffle": True}, "context_lens: got torch.float32, needs torch.int32"),
    ],
)
def test_what_aiters_paged_function_does_not_take(decode: upstream.Decode, change: dict[str, Any], message: str) -> None:
    call = decode
    names = ("q_fp8", "kv_cache", "weights", "out_logits", "context_lens", "kv_indices", "max_model_len")
    values = (call.q_fp8, call.cache(), call.weights, torch.zeros(6, 200), call.lens, call.table, 200)
    arguments = {**dict(zip(names, values, strict=True)), "KVBlockSize": 32, **change}
    with pytest.raises((ValueError, TypeError), match=message):
        aiter.deepgemm_fp8_paged_mqa_logits(**arguments)


def test_aiters_out_is_not_in_the_cache(decode: upstream.Decode) -> None:
    cache = decode.cache(tiles=True)
    out = cache.view(-1)[: 6 * 200 * 4].view(torch.float32).view(6, 200)
    before = cache.clone()
    with pytest.raises(ValueError, match=r"^out: shares memory with kv_cache, needs "):
        aiter.deepgemm_fp8_paged_mqa_logits(
            decode.q_fp8, cache, decode.weights, out, decode.lens, decode.table, 200, Preshuffle=True, KVBlockSize=32
        )
    assert torch.equal(cache, before)


def test_a_preshuffled_block_is_of_whole_tiles() -> None:
    call = upstream.Decode("cpu", 2, 1, 32, 64, 10, 1, dtype=FN)
    with pytest.raises(ValueError, match="kv_cache: got blocks of 1 keys, needs a multiple of 16 in a preshuffled cache"):
        aiter.deepgemm_fp8_paged_mqa_logits(
            call.q_fp8, call.cache(), call.weights, torch.zeros(2, 20), call.lens, call.table, 20, Preshuffle=True
        )


@pytest.mark.parametrize("requests", [0, 2])
def test_preshuffled_caches_without_anything_in_them(requests: int) -> None:
    q, lens = torch.zeros(requests, 1, 32, 64).to(FN), torch.zeros(requests, dtype=torch.int32)
    weights, out = torch.zeros(requests, 32), torch.full((requests, 20), 7.0)
    for blocks, entries in ((0, 3), (4, 0), (4, 3)):
        cache, table = torch.zeros(blocks, 16, 1, 68).byte(), torch.zeros(requests, entries, dtype=torch.int32)
        aiter.deepgemm_fp8_paged_mqa_logits(q, cache, weights, out, lens, table, 20, Preshuffle=True, KVBlockSize=16)
        assert (out == 7).all()


@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
def test_nothing_of_the_cache_is_copied(decode: upstream.Decode, preshuffle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the paged function is given is the engine's own memory, its layout said beside it."""
    given: list[Any] = []
    monkeypatch.setattr(
        aiter.mqa_logits.paged_mqa_logits,
        "fp8_paged_mqa_logits",
        lambda q, cache, *_, **options: given.append((cache, options)),
    )
    cache, out = decode.cache(tiles=preshuffle, width=80), torch.zeros(6, 200)
    aiter.deepgemm_fp8_paged_mqa_logits(
        decode.q_fp8, cache, decode.weights, out, decode.lens, decode.table, 200, Preshuffle=preshuffle, KVBlockSize=32
    )
    ((read, options),) = given
    assert (read.data_ptr(), read.shape, read.stride(0)) == (cache.data_ptr(), (len(cache), 32, 1, 68), cache.stride(0))
    assert options["layout"] == ("preshuffled" if preshuffle else "flat")


# Writers and gathers


@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
@pytest.mark.parametrize("scale_fmt", ["ue8m0", "fp32"])
@pytest.mark.parametrize(("block", "dim"), [(16, 128), (48, 128), (64, 64)])
def test_keys_are_written_as_aiter_writes_them(block: int, dim: int, scale_fmt: str, preshuffle: bool) -> None:
    layout = "preshuffled" if preshuffle else "flat"
    write = partial(aiter.indexer_k_quant_and_cache, preshuffle=preshuffle)
    engine_keys.check_written(write, layout=layout, scale_fmt=scale_fmt, block=block, dim=dim)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.uint8], ids=str)
def test_the_caches_dtype_is_the_keys(dtype: torch.dtype) -> None:
    """A cache of bytes has what the device reads; one key in a block, wider rows, and blocks further apart."""
    write = aiter.indexer_k_quant_and_cache
    engine_keys.check_written(write, layout="flat", scale_fmt="ue8m0", block=1, dtype=dtype, tokens=5)
    engine_keys.check_written(write, layout="flat", scale_fmt="ue8m0", block=16, dtype=dtype, gap=64, width=144)


@pytest.mark.parametrize("preshuffle", [True, False], ids=["tiles", "flat"])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.uint8, FN, torch.int16], ids=str)
@pytest.mark.parametrize("block", [16, 256])
def test_keys_are_gathered_as_aiter_gathers_them(block: int, scale_dtype: torch.dtype, preshuffle: bool) -> None:
    layout = "preshuffled" if preshuffle else "flat"
    gather = partial(aiter.cp_gather_indexer_k_quant_cache, preshuffle=preshuffle)
    engine_keys.check_gathered(gather, layout=layout, block=block, scale_dtype=scale_dtype)
    engine_keys.check_gathered(gather, layout=layout, block=block, scale_dtype=scale_dtype, gap=16, width=144)


def test_written_gathered_and_read() -> None:
    """A cache in tiles that ours has written, scored from where it lies, and as gathered."""
    generator, lens = torch.Generator().manual_seed(0), torch.tensor([70, 33], dtype=torch.int32)
    k, table = torch.randn(103, 128, generator=generator).bfloat16(), torch.tensor([[4, 0, 7], [2, 5, -1]], dtype=torch.int32)
    position, request = torch.cat([torch.arange(70), torch.arange(33)]), torch.tensor([0] * 70 + [1] * 33)
    cache = torch.zeros(8, 32, 132, dtype=torch.uint8).view(FN)
    slots = table[request, position // 32].long() * 32 + position % 32
    aiter.indexer_k_quant_and_cache(k, cache, slots, 128, "ue8m0", preshuffle=True)
    keys, scales = torch.zeros(103, 128).to(FN), torch.zeros(103, 1)
    sums = torch.tensor([0, 70, 103], dtype=torch.int32)
    aiter.cp_gather_indexer_k_quant_cache(cache, keys, scales.view(FN), table, sums, preshuffle=True)
    q, weights = torch.randn(2, 1, 32, 128, generator=generator).to(FN), torch.randn(2, 32, generator=generator)
    out = torch.full((2, 100), float("-inf"))
    aiter.deepgemm_fp8_paged_mqa_logits(q, cache.unsqueeze(2), weights, out, lens, table, 100, Preshuffle=True, KVBlockSize=32)
    dense = aiter.fp8_mqa_logits(q[:, 0], keys, scales, weights, sums[:2], sums[1:])
    for row, (start, end) in enumerate(((0, 70), (70, 103))):
        torch.testing.assert_close(out[row, : end - start], dense[row, start:end])
        assert out[row, end - start :].isneginf().all()


WRITE = {
    "k": torch.zeros(3, 128),
    "kv_cache": torch.zeros(2, 16, 132).to(FN),
    "slot_mapping": torch.tensor([0, 1, 2]),
    "quant_block_size": 128,
    "scale_fmt": "ue8m0",
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"quant_block_size": 64}, NotServed, "keys with several scales"),
        ({"k": torch.zeros(3, 256)}, NotServed, "keys of other than 32, 64 or 128 dims"),
        ({"scale_fmt": "mxfp8"}, NotServed, "scales of the format mxfp8"),
        ({"k": torch.zeros(3, 1, 128)}, ValueError, r"k: got shape \(3, 1, 128\), needs \[T, D\]"),
        ({"kv_cache": torch.zeros(2, 16, 132)}, TypeError, "kv_cache: got torch.float32, needs torch.uint8 or another type of"),
        ({"kv_cache": torch.zeros(2, 16, 130).to(FN)}, ValueError, "kv_cache: got shape"),
        ({"slot_mapping": [0, 1, 2]}, TypeError, "slot_mapping: got list, needs a torch.Tensor"),
        ({"quant_block_size": 128.0}, TypeError, "quant_block_size: got float, needs an int"),
        ({"kv_cache": torch.zeros(2, 1, 132).to(FN), "preshuffle": True}, ValueError, "kv_cache: got blocks of 1 keys, needs"),
    ],
)
def test_what_the_writer_does_not_take(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        aiter.indexer_k_quant_and_cache(**WRITE | change)


GATHER = {
    "kv_cache": torch.zeros(2, 16, 132).to(FN),
    "dst_k": torch.zeros(5, 128).to(FN),
    "dst_scale": torch.zeros(5, 1),
    "block_table": torch.zeros(2, 3, dtype=torch.int32),
    "cu_seq_lens": torch.tensor([0, 2, 5], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dst_scale": torch.zeros(5, 2)}, NotServed, "keys with several scales"),
        ({"dst_scale": torch.zeros(5, 3).byte()}, ValueError, r"dst_scale: got shape \(5, 3\) of torch.uint8, needs 4 bytes"),
        ({"dst_scale": torch.zeros(4, 5).byte().t()}, ValueError, "dst_scale: got strides .*, needs 4 adjacent bytes to a row"),
        ({"dst_scale": torch.zeros(5, 6).byte()[:, 1:5]}, ValueError, "dst_scale: got strides"),
        ({"dst_k": torch.zeros(5, 192).to(FN)}, NotServed, "keys of other than 32, 64 or 128 dims"),
        ({"dst_k": torch.zeros(5, 64).byte()}, NotServed, "keys of 4-bit values"),
        ({"cu_seq_lens": torch.zeros(2, dtype=torch.int32)}, ValueError, r"cu_lens: got shape \(2,\), needs \[3\]"),
    ],
)
def test_what_the_gather_does_not_take(change: dict[str, Any], error: type[Exception], message: str) -> None:
    aiter.cp_gather_indexer_k_quant_cache(**GATHER)
    with pytest.raises(error, match=f"^{message}"):
        aiter.cp_gather_indexer_k_quant_cache(**GATHER | change)
