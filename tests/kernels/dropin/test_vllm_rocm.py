"""vLLM's functions on ROCm over ours: what upstream's own tests do not ask."""

import sys
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels.dropin import vllm_rocm
from capgate.kernels.dropin.families import NotServed
from support import engine_keys, upstream

FN = torch.float8_e4m3fn


@pytest.fixture
def decode() -> upstream.Decode:
    return upstream.Decode("cpu", 3, 2, 32, 64, 100, 32, dtype=FN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q_fp8": None}, "q_fp8: got NoneType, needs a torch.Tensor"),
        (
            {"kv_cache_fp8": torch.zeros(4, 32, 1, 60).byte()},
            r"kv_cache_fp8: got shape \(4, 32, 1, 60\), needs .* to match q_fp8",
        ),
        ({"max_model_len": -1}, "max_model_len: got -1, needs 0 or more"),
        ({"max_model_len": True}, "max_model_len: got bool, needs an int"),
        ({"compress_ratio": "4"}, "compress_ratio: got str, needs an int"),
    ],
)
def test_what_vllms_paged_function_does_not_take(decode: upstream.Decode, change: dict[str, Any], message: str) -> None:
    names = ("q_fp8", "kv_cache_fp8", "weights", "context_lens", "block_tables", "schedule_metadata", "max_model_len")
    values = (decode.q_fp8, decode.cache(), decode.weights, decode.lens, decode.table, None, 200)
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        vllm_rocm.rocm_fp8_paged_mqa_logits(**dict(zip(names, values, strict=True)) | change)


def test_vllm_s_cache_is_in_tiles_where_vllm_writes_tiles() -> None:
    """On gfx942 and gfx950 with more than one key in a block; not for keys that stand for four tokens."""
    for target, tiles in (("hip:gfx950", True), ("hip:gfx942", True), ("cuda:90", False), ("cpu", False)):
        caps = compat.capabilities(target)
        assert [vllm_rocm.holds_tiles(caps, 64, ratio) for ratio in (1, 2, 4)] == [tiles, tiles, False]
        assert not vllm_rocm.holds_tiles(caps, 1, 1)


def test_vllm_s_tiles_are_read_as_tiles(decode: upstream.Decode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_rocm, "holds_tiles", lambda caps, block, ratio: (block, ratio) == (32, 2))
    operands = (decode.q_fp8, decode.cache(tiles=True), decode.weights, decode.lens, decode.table, None, 200)
    logits = vllm_rocm.rocm_fp8_paged_mqa_logits(*operands, compress_ratio=2)
    assert logits.stride() == (200, 1)
    decode.judge(logits)


class Workspaces:
    """As vLLM's manager: buffers of one piece of memory, which every call is given again."""

    def __init__(self) -> None:
        self.memory = torch.full((6 * 200 * 4 + 256,), 0x5A, dtype=torch.uint8)
        self.asked: list[Any] = []

    def get_simultaneous(self, *wanted: tuple[tuple[int, ...], torch.dtype]) -> list[torch.Tensor]:
        self.asked += wanted
        ((shape, dtype),) = wanted
        return [self.memory[: shape[0] * shape[1] * dtype.itemsize].view(dtype).reshape(shape)]


@pytest.fixture
def workspaces(monkeypatch: pytest.MonkeyPatch) -> Workspaces:
    module, manager = ModuleType("workspace"), Workspaces()
    module.is_workspace_manager_initialized = lambda: True
    module.current_workspace_manager = lambda: manager
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.workspace", module)
    return manager


@pytest.mark.parametrize("two_d", [True, False], ids=["row-lengths", "lengths"])
def test_the_logits_are_in_vllms_workspace(workspaces: Workspaces, two_d: bool) -> None:
    """Uncleaned: a row's cells, and -inf up to the request's end where rows have no lengths of their own."""
    call = upstream.Decode("cpu", 3, 2, 32, 64, 100, 32, two_d=two_d, dtype=FN)
    before = workspaces.memory.clone().view(torch.float32)[: 6 * 200].view(6, 200)
    operands = (call.q_fp8, call.cache(), call.weights, call.lens, call.table, None)
    logits = vllm_rocm.rocm_fp8_paged_mqa_logits(*operands, 200)
    assert workspaces.asked == [((6, 200), torch.float32)]
    assert logits.data_ptr() == workspaces.memory.data_ptr()
    assert (logits.shape, logits.stride()) == ((6, 200), (200, 1))
    position = torch.arange(200)
    beyond = position >= (call.seen if two_d else call.contexts)[:, None]
    assert torch.equal(logits[beyond], before[beyond])
    call.judge(logits.masked_fill(beyond, float("-inf")))


def test_a_workspace_manager_that_vllm_has_not_made(workspaces: Workspaces, decode: upstream.Decode) -> None:
    sys.modules["vllm.v1.worker.workspace"].is_workspace_manager_initialized = lambda: False
    logits = vllm_rocm.rocm_fp8_paged_mqa_logits(
        decode.q_fp8, decode.cache(), decode.weights, decode.lens, decode.table, None, 200
    )
    assert not workspaces.asked
    decode.judge(logits)


@pytest.mark.parametrize("block", [16, 256])
def test_blocks_and_rows_as_vllm_has_them(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """256 keys in a block; rows of more bytes than a key and its scale take."""
    monkeypatch.setattr(vllm_rocm, "holds_tiles", lambda caps, block, ratio: True)
    call = upstream.Decode("cpu", 3, 2, 32, 64, 300, block, dtype=FN)
    operands = (call.q_fp8, call.cache(tiles=True, width=96), call.weights, call.lens, call.table, None)
    call.judge(vllm_rocm.rocm_fp8_paged_mqa_logits(*operands, 400))


def test_prefill_is_not_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM asks aiter so, and looks at no cell outside the windows."""
    given: list[Any] = []
    monkeypatch.setattr(vllm_rocm.mqa_logits, "fp8_mqa_logits", lambda *tensors, **options: given.append(options))
    q, kv = torch.zeros(2, 4, 32).to(FN), (torch.zeros(3, 32).to(FN), torch.zeros(3, 1))
    vllm_rocm.rocm_fp8_mqa_logits(q, kv, torch.zeros(2, 4), torch.zeros(2).int(), torch.ones(2).int())
    assert given == [{"clean_logits": False}]


# Writers and gathers


@pytest.mark.parametrize("scale_fmt", ["ue8m0", None])
@pytest.mark.parametrize(("block", "gap"), [(1, 0), (16, 0), (64, 576), (256, 0)])
def test_keys_are_in_tiles_where_a_block_has_several(block: int, gap: int, scale_fmt: Any) -> None:
    layout = "flat" if block == 1 else "preshuffled"
    write, gather = vllm_rocm.indexer_k_quant_and_cache_triton, vllm_rocm.cp_gather_indexer_k_quant_cache_triton
    engine_keys.check_written(write, layout=layout, scale_fmt=scale_fmt, block=block, gap=gap, dtype=torch.uint8, tokens=5)
    engine_keys.check_gathered(partial(gather, token_to_seq=None), layout=layout, block=block, gap=gap, scale_dtype=torch.uint8)


@pytest.mark.parametrize(("name", "layout"), [("NORMAL", "flat"), ("SHUFFLE", "preshuffled")])
def test_a_layout_that_is_named(name: str, layout: str) -> None:
    gather = partial(vllm_rocm.cp_gather_indexer_k_quant_cache_triton, token_to_seq=None, cache_layout=name)
    engine_keys.check_gathered(gather, layout=layout, block=64, scale_dtype=torch.uint8)


def test_what_the_writer_and_the_gather_do_not_take() -> None:
    cache, slots = torch.zeros(2, 64, 132, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(NotServed, match=r"^tiles of other than 16 keys by 16 bytes$"):
        vllm_rocm.indexer_k_quant_and_cache_triton(torch.zeros(1, 128), cache, slots, 128, "ue8m0", 32)
    operands = (torch.zeros(1, 128).to(FN), torch.zeros(1, 1), torch.zeros(1, 1).int(), torch.tensor([0, 1]).int(), None)
    with pytest.raises(ValueError, match="cache_layout: got 'TILED', needs 'NORMAL' or 'SHUFFLE'"):
        vllm_rocm.cp_gather_indexer_k_quant_cache_triton(cache, *operands, cache_layout="TILED")
