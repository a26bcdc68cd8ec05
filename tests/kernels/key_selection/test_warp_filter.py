"""The filter of gluon_hopper's sections, as it is written, with numpy in the place of Gluon and of a warp: no emulator executes
Hopper's code."""

from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from capgate import compat
from support import inline_assembly

HOPPER = compat.capabilities("cuda:90")
pytestmark = [
    pytest.mark.one_lane,
    pytest.mark.skipif(not HOPPER.gluon_hopper, reason=str(HOPPER.why("gluon_hopper"))),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
WARPS, ROOM, SAMPLE = 2, 2048, 512
LISTS, LOGITS = 0, 8 * (ROOM + 2)  # where they lie in memory


class Tensor(np.ndarray):
    """An array with what tensors have beside."""

    def to(self, dtype: Any, bitcast: bool = False) -> "Tensor":
        return self.view(dtype) if bitcast else self.astype(dtype)

    def reshape(self, *shape: Any, **_: Any) -> "Tensor":
        return super().reshape(*shape).view(Tensor)


def tensor(values: Any, dtype: Any = None) -> Tensor:
    return np.asarray(values, dtype).view(Tensor)


class Pointer:
    """Addresses of elements."""

    def __init__(self, address: Any, bits: int) -> None:
        self.address, self.bits = address, bits
        self.dtype = SimpleNamespace(element_ty=SimpleNamespace(primitive_bitwidth=bits))

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.address + np.asarray(other).astype(np.int64) * (self.bits // 8), self.bits)

    def to(self, _: Any) -> Tensor:
        return tensor(self.address, np.int64)


class Bench:
    """The filter's functions over some memory."""

    def __init__(self, logits: Any) -> None:
        from capgate.kernels.key_selection.device import warp_filter

        octets = np.concatenate([logits.view(np.uint8), np.full(64 * 4096, 0x7F, np.uint8)])  # behind the row NaN
        self.memory = np.concatenate([np.zeros(LOGITS, np.uint8), octets])
        self.bits = 8 * logits.itemsize
        own: dict[str, Any] = {"gl": self.language(), "LOWEST": 0x007FFFFF, "PAST_LARGEST": 0xFF800001}
        for name in ("MARGIN", "GOLDEN", "LANES", "PIECE", "PIECES", "CHUNK", "STEPS", "FLOOR"):
            own[name] = getattr(warp_filter, name).value
        for name in (
            "sample_bar",
            "find_bar",
            "bits_reaching",
            "adjacent_bits",
            "count_bits",
            "append_bits",
            "load_pieces",
        ):
            own[name] = FunctionType(getattr(warp_filter, name).fn.__code__, own)
        for name in ("before_lane", "bits_between", "before_warp", "append_section"):
            own[name] = FunctionType(getattr(warp_filter, name).fn.__code__, own)
        own |= {name: lambda *_: None for name in ("quad_layout", "lane_layout", "exchange_layout")}
        own |= {"key_of": key_of, "value_of": value_of, "reaching_code": warp_filter.reaching_code}
        self.own, self.logits = own, Pointer(np.int64(LOGITS), self.bits)

    def sample(self, skip: int, size: int, top_k: int) -> Tensor:
        """The bar of logits [skip, size)."""
        return self.own["sample_bar"](self.logits, tensor(skip, np.int32), tensor(size, np.int32), top_k, SAMPLE, WARPS)

    def append(self, skip: int, size: int, first_index: int, bar: Tensor, ahead: bool) -> int:
        """How many of logits [skip, size) are not less than the bar; the list is in memory."""
        lists, numbers = Pointer(np.int64(LISTS), 64), (tensor(skip, np.int32), size, tensor(first_index, np.int32))
        return int(self.own["append_section"](self.logits, *numbers, bar, lists, WARPS, ROOM, ahead))

    def language(self) -> Any:
        def load(pointer: Pointer, mask: Any = True) -> Tensor:
            found = np.zeros(np.shape(pointer.address), np.int64)
            for place, there in np.ndenumerate(np.broadcast_to(mask, found.shape)):
                if there:
                    address = int(pointer.address[place])
                    octets = self.memory[address : address + self.bits // 8]
                    found[place] = int.from_bytes(octets.tobytes(), "little") << (32 - self.bits)
            return tensor(found.astype(np.uint32).view(np.float32))

        def assembly(text: str, constraints: str, operands: Any, dtype: Any, is_pure: bool, pack: int) -> Any:
            kinds = dtype if isinstance(dtype, tuple) else (dtype,)
            found = inline_assembly.elementwise(text, constraints, operands, self.memory, pack, len(kinds))
            made = [tensor(each.view(np.int32)) for each in found]
            return made[0] if len(made) == 1 else tuple(made)

        def to_tensor(value: Any) -> Any:
            return tensor(value, np.float32 if isinstance(value, float) else np.int64 if value > 2**31 else np.int32)

        return SimpleNamespace(
            load=load, inline_asm_elementwise=assembly, to_tensor=to_tensor, static_range=range, constexpr=None,
            arange=lambda first, last, _: tensor(np.arange(first, last), np.int32),
            full=lambda shape, value, dtype, _: tensor(np.full(shape, value), dtype),
            where=lambda condition, one, other: single(np.where(condition, one, other)),
            sum=lambda x, axis: single(np.sum(x, axis, dtype=x.dtype)), max=lambda x, axis: tensor(np.max(x, axis)),
            minimum=lambda a, b: single(np.minimum(a, b)), maximum=lambda a, b: single(np.maximum(a, b)),
            abs=np.abs, sqrt=np.sqrt, exp2=np.exp2, log2=np.log2, cdiv=lambda a, b: -(-a // b),
            split=lambda x: (x[..., 0], x[..., 1]), convert_layout=lambda x, *_, **__: x, SliceLayout=lambda *_: None,
            int32=np.int32, int64=np.int64, uint32=np.uint32, uint64=np.uint64, float32=np.float32,
        )  # fmt: skip


def single(values: Any) -> Tensor:
    values = np.asarray(values)
    return tensor(values, {np.dtype(np.float64): np.float32, np.dtype(np.int64): np.int32}.get(values.dtype, values.dtype))


def key_of(value: Any) -> Tensor:
    bits = tensor(value, np.float32).view(np.int32)
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def value_of(key: Any) -> Tensor:
    bits = tensor(key, np.uint32).view(np.int32)
    return (bits ^ ((~bits >> 31) | np.int32(-(2**31)))).view(np.float32)


def logits_of(kind: str, columns: int) -> Any:
    draw, number = np.random.default_rng(columns), np.arange(columns, dtype=np.float32)
    normal = draw.standard_normal(columns).astype(np.float32)
    return {
        "normal": normal,
        "ascending": number,
        "descending": -number,
        "equal": np.full_like(normal, 1.5),
        "plateau": np.where(number % 50 == 7, np.abs(normal), np.float32(-0.0)),
        "infinities": np.where(number % 3 == 1, np.float32(np.inf), np.float32(-np.inf)),
        "mostly-minus-infinity": np.where(number % 50 == 7, normal, np.float32(-np.inf)),
        "nan": np.where(number % 20 == 7, np.float32(np.nan), normal),
        "all-nan": np.full_like(normal, np.nan),
        "denormal": (normal * np.float32(1e-44)).astype(np.float32),
    }[kind]


KINDS = [
    "normal",
    "ascending",
    "descending",
    "equal",
    "plateau",
    "infinities",
    "mostly-minus-infinity",
    "nan",
    "all-nan",
    "denormal",
]


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "as-it-comes"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("skip", "size", "top_k"), [(0, 4096, 100), (3, 5001, 7), (1, 2050, 1000)], ids=str)
def test_what_reaches_the_bar_is_listed_in_the_order_of_its_keys(
    kind: str, skip: int, size: int, top_k: int, ahead: bool
) -> None:
    """Whole blocks and ragged ends, whatever the sampled bar is; longer lists than there is room for are counted."""
    logits = logits_of(kind, size)
    bench = Bench(logits)
    bar = bench.sample(skip, size, top_k)
    reached = np.flatnonzero(~(logits < bar))
    reached = reached[reached >= skip]
    fill = bench.append(skip, size, 70, bar, ahead)
    assert fill == len(reached)
    if len(reached) <= ROOM:
        listed = bench.memory[: 8 * len(reached)].view(np.uint32).reshape(-1, 2)
        assert (listed[:, 1] == 70 + reached).all()
        assert (listed[:, 0] == logits.view(np.uint32)[reached]).all()
    assert float(bar) > -np.inf
    if kind in ("normal", "ascending", "descending", "denormal"):
        assert top_k <= len(reached) <= 2 * top_k + 15 * size / SAMPLE * max(1, np.sqrt(top_k * SAMPLE / size))


def test_logits_of_bfloat16_are_loaded_again_as_such() -> None:
    normal = logits_of("normal", 3000)
    halves = (normal.view(np.uint32) >> 16).astype(np.uint16)
    widened = (halves.astype(np.uint32) << 16).view(np.float32)
    bench = Bench(halves)
    bench.append(0, 3000, 0, tensor(1.0, np.float32), True)
    reached = np.flatnonzero(widened >= 1.0)
    listed = bench.memory[: 8 * len(reached)].view(np.uint32).reshape(-1, 2)
    assert (listed[:, 1] == reached).all()
    assert (listed[:, 0].view(np.float32) == widened[reached]).all()
