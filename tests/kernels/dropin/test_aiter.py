"""aiter's functions over ours: what upstream's own tests do not ask."""

from typing import Any

import pytest
import torch

from capgate.kernels.dropin import aiter  # noqa: A004 - a library's name
from support import upstream

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
