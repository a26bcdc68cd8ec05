"""The lists that gluon_hopper's registers hold: their search and what moves in them, as they are written, with numpy in the
place of Gluon and of PTX: no emulator executes Hopper's code."""

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
]
PLANES, ROWS, THREADS = 4, 2, 128
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45], np.float32)


class Tensor(np.ndarray):
    """An array with what tensors have beside."""

    def to(self, dtype: Any, bitcast: bool = False) -> "Tensor":
        return self.view(dtype) if bitcast else self.astype(dtype)


def tensor(values: Any, dtype: Any) -> Tensor:
    return np.asarray(values, dtype).view(Tensor)


def key_of(value: Any) -> Tensor:
    bits = tensor(value, np.float32).view(np.int32)
    return (bits ^ ((bits >> 31) | np.int32(-(2**31)))).view(np.uint32)


def value_of(key: Any) -> Tensor:
    bits = tensor(key, np.uint32).view(np.int32)
    return (bits ^ ((~bits >> 31) | np.int32(-(2**31)))).view(np.float32)


def where(condition: Any, one: Any, other: Any) -> Any:
    chosen = np.where(condition, one, other)
    return tensor(chosen, np.float32 if chosen.dtype == np.float64 else chosen.dtype)


LANGUAGE = SimpleNamespace(
    where=where, maximum=np.fmax, minimum=np.fmin, max=np.max, min=np.min, abs=np.abs, sqrt=np.sqrt, static_range=range,
    to_tensor=lambda x: x, float32=np.float32, int32=np.int32, constexpr=int,
)  # fmt: skip


def search(held: Any, total: Any, floor: Any, fresh: bool, top_k: int, most: int) -> tuple[Tensor, bool, int]:
    """(pivots, whether each list has one, counts that found them) by held_lists.find_pivot."""
    from capgate.kernels.fused_selection.device import held_lists

    counted = []

    def count_held(held: Any, bar: Any, *_: Any) -> Tensor:
        counted.append(bar)
        return tensor((~(np.stack(held, -1) < np.asarray(bar)[:, None, None])).sum((1, 2)), np.int32)

    constants = {name: getattr(held_lists, name).value for name in ("SAMPLED", "CURVED", "STRAIGHT", "MOST_COUNTS")}
    functions = {"key_of": key_of, "value_of": value_of, "count_held": count_held, "logarithm": np.log2, "ratio": np.divide}
    own = {**constants, **functions, "gl": LANGUAGE, "THREADS": THREADS, "largest_of": lambda x, _: np.fmax.reduce(x, 1)}
    own["sampled_extremes"] = FunctionType(held_lists.sampled_extremes.fn.__code__, own)
    find_pivot = FunctionType(held_lists.find_pivot.fn.__code__, own)
    nothing = tensor(np.zeros((ROWS, THREADS)), np.float32)
    with np.errstate(all="ignore"):
        pivot, found = find_pivot(
            held,
            tensor(total, np.int32),
            tensor(floor, np.float32),
            int(fresh),
            top_k,
            tensor([most], np.int32),
            nothing,
            None,
            PLANES,
        )
    return pivot, bool(found), len(counted)


def planes_of(lists: list[Any]) -> tuple[Tensor, ...]:
    """[ROWS, THREADS] for each plane, -inf behind the entries."""
    padded = np.full((ROWS, PLANES * THREADS), -np.inf, np.float32)
    for row, entries in enumerate(lists):
        padded[row, : len(entries)] = entries
    return tuple(tensor(plane, np.float32) for plane in padded.reshape(ROWS, PLANES, THREADS).swapaxes(0, 1))


@pytest.mark.parametrize("more", [0, 5])
@pytest.mark.parametrize("fresh", [True, False])
def test_different_logits_have_a_pivot_that_few_counts_find(fresh: bool, more: int) -> None:
    """Of a row's first keys, or of those above a threshold; near both ends of a list, too."""
    draw = np.random.default_rng(more)
    counts = []
    for top_k in (40, 41, 100, 200, 300):
        for _ in range(20):
            lists = [draw.standard_normal(size).astype(np.float32) for size in draw.integers(top_k + 1, 513, ROWS)]
            if not fresh:
                lists = [-np.log(draw.random(len(entries))).astype(np.float32) for entries in lists]
            floor = [np.nan, np.nan] if fresh else [0.0, 0.0]
            total = [len(entries) for entries in lists]
            pivot, found, number = search(planes_of(lists), total, floor, fresh, top_k, top_k + more)
            reached = [int((entries >= bar).sum()) for entries, bar in zip(lists, pivot, strict=True)]
            assert not found or all(top_k <= number <= top_k + more for number in reached)
            counts.append(number if found else 99)
    assert np.mean(np.array(counts) == 99) <= 0.02
    assert np.median(counts) <= (8 if more == 0 else 4)


def test_a_pivot_is_right_whatever_logits_are() -> None:
    """Equal ones, of all signs, infinite, denormal and NaN, beside a list that is short: if there is a pivot, it is right, and
    otherwise the other search selects."""
    draw = np.random.default_rng(0)
    answers = []
    for trial in range(300):
        top_k = int(draw.integers(1, 200))
        lists = [draw.standard_normal(size).astype(np.float32) for size in draw.integers(0, 513, ROWS)]
        for entries in lists:
            entries[:] = np.where(draw.random(len(entries)) < (trial % 4) / 3, draw.choice(SPECIAL, len(entries)), entries)
        total, most = [len(entries) for entries in lists], top_k + top_k // 8 * (trial % 2)
        pivot, found, _ = search(planes_of(lists), total, [np.nan, np.nan], bool(trial % 3), top_k, most)
        answers.append(found)
        for entries, bar in zip(lists, pivot, strict=True):
            if len(entries) <= top_k:
                assert bar == -np.inf
            elif found:
                assert bar > -np.inf
                assert top_k <= int((~(entries < bar)).sum()) <= most
    assert 50 < sum(answers) < 250


def threshold_of(lists: list[Any], top_k: int, most: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """(threshold, closed, spare, counts) of lists that registers do not hold, by warpgroup_lists.find_threshold."""
    from capgate.kernels.fused_selection.device import warpgroup_lists

    counted = []

    def each_of(lowest: Any, highest: Any) -> tuple[Tensor, Tensor]:
        """The least and the largest logit of each list that is not NaN and lies between two."""
        inside = [
            entries[(entries >= low) & (entries <= high)] for entries, low, high in zip(lists, lowest, highest, strict=True)
        ]
        least = [entries.min(initial=np.inf) for entries in inside]
        return tensor(least, np.float32), tensor([entries.max(initial=-np.inf) for entries in inside], np.float32)

    def extremes(*_: Any) -> tuple[Tensor, Tensor, Tensor]:
        return *each_of([-np.inf] * ROWS, [np.inf] * ROWS), tensor([np.isnan(entries).sum() for entries in lists], np.int32)

    def draw_in(values: Any, place: Any, longest: Any, size: Any, low: Any, high: Any, memory: Any) -> tuple[Tensor, Tensor]:
        least, most_value = each_of(value_of(low), value_of(high - np.uint32(1)))
        return np.fmax(low, key_of(least + 0.0)), np.fmin(high, key_of(most_value + 0.0) + np.uint32(1))

    def count_reaching(values: Any, place: Any, longest: Any, size: Any, bar: Any, memory: Any) -> Tensor:
        counted.append(bar)
        return tensor([(~(entries < at)).sum() for entries, at in zip(lists, bar, strict=True)], np.int32)

    own: dict[str, Any] = {
        "gl": LANGUAGE,
        "STEPS": warpgroup_lists.STEPS.value,
        "PAST_LARGEST": np.uint32(0xFF800001),
        **{function.__name__: function for function in (extremes, draw_in, count_reaching, key_of, value_of)},
    }
    find_threshold = FunctionType(warpgroup_lists.find_threshold.fn.__code__, own)
    total = tensor([len(entries) for entries in lists], np.int32)
    with np.errstate(all="ignore"):
        threshold, closed, spare = find_threshold(*[None] * 4, total, top_k, tensor([most], np.int32), None)
    return threshold, closed, spare, len(counted)


@pytest.mark.parametrize("more", [0, 8])
def test_long_lists_keep_up_to_an_eighth_more_than_top_k_and_never_less(more: int) -> None:
    """Where equal logits would be more still, exactly top_k: the first ones of them."""
    draw, counts = np.random.default_rng(more), []
    for trial in range(300):
        top_k = int(draw.integers(1, 200))
        lists = [draw.standard_normal(size).astype(np.float32) for size in draw.integers(0, 2000, ROWS)]
        for entries in lists:
            entries[:] = np.where(draw.random(len(entries)) < (trial % 4) / 3, draw.choice(SPECIAL, len(entries)), entries)
        most = top_k + top_k * more // 64
        threshold, closed, spare, number = threshold_of(lists, top_k, most)
        for entries, bar, only_nan, equals in zip(lists, threshold, closed, spare, strict=True):
            above = 0 if only_nan else int((~(entries <= bar)).sum())
            equal = np.isnan(entries).sum() if only_nan else int((entries == bar).sum())
            kept = above + min(int(equals), int(equal))
            if len(entries) <= top_k:
                assert kept == len(entries)
            else:
                assert top_k <= kept <= most
                assert kept == top_k or equals >= equal
        counts += [number] * (trial % 4 == 0)
    assert np.median(counts) <= (12 if more == 0 else 5)


# --- what is loaded and moved ---------------------------------------------------------------------------------------------


class Pointer:
    """To the first of a memory's words of 4 bytes."""

    def __add__(self, entries: Any) -> Tensor:
        return tensor(4 * np.asarray(entries, np.int64), np.int64)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("planes", [1, 2, 12, 40, 64])
def test_what_reaches_the_bar_moves_up_in_its_order(planes: int, rows: int) -> None:
    """With its indices, in each run by itself; what is loaded of an entry behind a run's last one is -inf, where up to three
    are in memory. NaN is kept; of a list with the bar -inf everything stays where it is."""
    from capgate.kernels.fused_selection.device import held_lists

    room, draw = 32 * planes + 16, np.random.default_rng(planes)
    memory = draw.integers(-(2**31), 2**31, rows * 4 * 2 * room, dtype=np.int64).astype(np.int32)
    runs = memory.reshape(rows, 4, 2, room)
    sizes = draw.integers(0, 32 * planes + 1, (rows, 4))
    sizes[0, 1] = 32 * planes
    for row, run in np.ndindex(rows, 4):
        logits = draw.standard_normal(sizes[row, run]).astype(np.float32)
        logits[draw.random(len(logits)) < 0.1] = np.nan
        runs[row, run, 0, : len(logits)] = logits.view(np.int32)
        runs[row, run, 0, len(logits) : len(logits) + 4] = np.float32(-np.inf).view(np.int32)
    before, bars = runs.copy(), [0.5, -np.inf][:rows]

    def inline_asm(code: str, constraints: str, operands: Any, dtype: Any, is_pure: bool, pack: int) -> Any:
        outputs = len(dtype) if isinstance(dtype, tuple) else 1
        made = [tensor(np.zeros((rows, THREADS)), each) for each in (dtype if outputs > 1 else (dtype,))]
        for first in range(0, rows, pack):
            for warp in range(0, THREADS, 32):
                cells = [each[row, warp : warp + 32] for each in operands for row in range(first, first + pack)]
                for place, result in enumerate(inline_assembly.execute(code, constraints, cells, memory.view(np.uint8))):
                    kind = made[place // pack]
                    kind[first + place % pack, warp : warp + 32] = result.view(kind.dtype)
        return tuple(made) if outputs > 1 else made[0]

    language = SimpleNamespace(**vars(LANGUAGE), int64=np.int64, inline_asm_elementwise=inline_asm)
    thread = np.arange(THREADS)[None]
    own: dict[str, Any] = {
        **{name: each for name, each in vars(held_lists).items() if type(each).__name__ == "ConstexprFunction"},
        **{name: getattr(held_lists, name).value for name in ("AHEAD", "PACKED", "LANES")},
        "gl": language,
        "max": max,
        "min": min,
        "lane_and_run": lambda _: (tensor(thread % 32, np.int32), thread // 32),
    }
    for name in ("list_of", "load_logits", "load_indices", "load_planes", "packed", "before_lane", "move", "keep_held"):
        code = getattr(held_lists, name).fn
        own[name] = FunctionType(code.__code__, own, name, code.__defaults__)
    run = np.arange(rows)[:, None] * 4 + thread // 32
    place, size = tensor(run * 2 * room, np.int32), tensor(np.repeat(sizes, 32, 1), np.int32)
    held = own["load_planes"](Pointer(), place, size, planes)
    bar = tensor(np.repeat(bars, THREADS).reshape(rows, THREADS), np.float32)
    kept = own["keep_held"](held, Pointer(), place, bar, planes, room)
    for row, each in np.ndindex(rows, 4):
        logits, indices = before[row, each, :, : sizes[row, each]]
        stays = ~(logits.view(np.float32) < bars[row])
        if row:
            assert (runs[row, each, 0, : len(logits)] == logits).all()
            assert (runs[row, each, 1, : len(logits)] == indices).all()
            continue
        assert (kept[row, 32 * each : 32 * each + 32] == stays.sum()).all()
        assert (runs[row, each, 0, : stays.sum()] == logits[stays]).all()
        assert (runs[row, each, 1, : stays.sum()] == indices[stays]).all()
