"""Rows that are longer than a block, filtered by a sampled bar: whatever the sample says, the selection is the right one."""

from typing import Any

import pytest
import torch

from support import selection

pytestmark = [
    pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning"),
    pytest.mark.usefixtures("interpreter"),
]

COLUMNS, TOP_K, SAMPLE = 3000, 100, 256
# Two whole blocks and a part of a third, or sections of a whole block and a part: the interpreter's time is one of blocks.
WAYS = {
    "whole": {"programs": 1, "sample": SAMPLE, "block_logits": 1024},
    "sections": {"programs": 5, "sample": SAMPLE},
    "loaded-ahead": {"programs": 1, "sample": SAMPLE, "block_logits": 1024, "ahead": True},
}


def sampled() -> torch.Tensor:
    """Which cells of a row of COLUMNS are the sample, as the kernel chooses them: a quad of each of SAMPLE // 4 parts."""
    point = torch.arange(SAMPLE // 4)
    step, spare = divmod(COLUMNS // 4, SAMPLE // 4)
    inside = ((point * 2654435769) % 2**32 * step) >> 32
    quads = point * step + point * spare // (SAMPLE // 4) + inside
    return (torch.arange(COLUMNS // 4)[:, None] == quads).any(1).repeat_interleave(4)


def logits_of(kind: str) -> torch.Tensor:
    """One row, and a second one of its last few."""
    number = torch.arange(COLUMNS, dtype=torch.float32)
    normal = selection.make_logits("normal", 1, COLUMNS)[0]
    rows = {
        "normal": normal,
        "ascending": number,
        "descending": -number,
        "equal": torch.full_like(normal, 1.5),
        "sample-too-large": torch.where(sampled(), normal.abs() + 9, normal),  # too few reach the bar
        "sample-too-small": torch.where(sampled(), normal - 99, normal),  # all but the sample do
        "plateau": torch.where(number % 50 == 7, normal.abs(), 0.0),  # fewer than TOP_K are larger than many zeros
        "plateau-of-infinities": torch.where(number % 50 == 7, float("nan"), float("inf")),
        "mostly-minus-infinity": torch.where(number % 50 == 7, normal, -float("inf")),
        "nan": torch.where(number % 20 == 7, float("nan"), normal),
    }
    return rows[kind]


@pytest.mark.dealt
@pytest.mark.parametrize(
    ("kind", "way"),
    [
        *((kind, "whole") for kind in ("normal", "ascending", "equal", "sample-too-small", "plateau-of-infinities", "nan")),
        *((kind, "sections") for kind in ("normal", "descending", "sample-too-large", "plateau")),
        *((kind, "loaded-ahead") for kind in ("normal", "mostly-minus-infinity")),
    ],
)
def test_samples_that_tell_and_that_mislead(kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    selection.shorten_blocks(monkeypatch, **WAYS[way])
    logits = selection.judge.laid_out(logits_of(kind)[None], gap=8)
    selection.check(logits, None, torch.tensor([COLUMNS], dtype=torch.int32), TOP_K, "classic", alone=False)


@pytest.mark.dealt
@pytest.mark.parametrize(("kind", "top_k"), [("ascending", 256), ("descending", 255), ("equal", 256)])
def test_all_candidates_of_a_group(kind: str, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """128 of them in each plane of quads, as many as eight bits of a prefix sum are made for."""
    selection.shorten_blocks(monkeypatch, **WAYS["whole"])
    logits = selection.judge.laid_out(logits_of(kind)[None, :700], gap=8)
    selection.check(logits, None, torch.tensor([700], dtype=torch.int32), top_k, "classic", alone=False)


@pytest.mark.dealt("programs")
@pytest.mark.parametrize(
    ("layout", "programs"),
    [({"gap": 8}, 1), ({"gap": 8}, 40), ({"gap": 7, "offset": 9}, 40), ({"order": (1, 0)}, 1)],
    ids=["vectors-whole", "vectors-cut", "cells-cut", "turned-whole"],
)
def test_windows(layout: dict[str, Any], programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of no key, of few, of as many as a list has room for, and of one more; that begin and end inside a quad."""
    selection.shorten_blocks(monkeypatch, programs)
    starts = torch.tensor([5, 7, 1, 3, 2, 0], dtype=torch.int32)
    ends = torch.tensor([5, 97, 513, 516, 1303, 1800], dtype=torch.int32)
    logits = selection.judge.sentinels(6, 1500, **layout).copy_(selection.make_logits("few-values", 6, 1500))
    selection.check(logits, starts, ends, 90, "classic", alone=False)


@pytest.mark.dealt("programs")
@pytest.mark.parametrize(("programs", "relative"), [(1, True), (20, False)])
def test_compressed_bfloat16_logits(programs: int, relative: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    selection.shorten_blocks(monkeypatch, programs)
    starts, ends = torch.tensor([-40, 900], dtype=torch.int32), torch.tensor([1100, 2300], dtype=torch.int32)
    logits = selection.make_logits("normal", 2, 1200).bfloat16()
    selection.check(logits, starts, ends, 60, "classic", alone=False, num_keys=2200, relative=relative)
