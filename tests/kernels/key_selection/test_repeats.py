"""Selections that repeat: what is kept of them gets the addresses of the call at hand, and finds what the long way finds.

Kept launches are played by the reference, which finds its operands at the addresses that it is given.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import select_from_logits, select_keys, select_paged_keys
from support import judge, paged

pytestmark = pytest.mark.any_triton

INT = torch.int32


def at(address: int, like: torch.Tensor) -> torch.Tensor:
    """The tensor that lies there, with shape, strides and dtype of another one."""
    if like.numel() == 0:
        return torch.empty_like(like)
    memory = (ctypes.c_char * compat.extent(like)).from_address(address)
    return torch.frombuffer(memory, dtype=torch.uint8).view(like.dtype).as_strided(like.shape, like.stride())


class Played:
    """The launches of calls like one."""

    runs = 0

    def __init__(self, operation: Any, operands: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.function = operation.load(operation.variants["reference"])
        self.operands, self.options = operands, options

    def __call__(self, addresses: Sequence[int]) -> bool:
        left = list(addresses)

        def here(value: Any) -> Any:
            if isinstance(value, tuple):
                return value._make(map(here, value))
            return at(left.pop(0), value) if isinstance(value, torch.Tensor) else value

        operands, options = [here(operand) for operand in self.operands], {k: here(v) for k, v in self.options.items()}
        assert not left
        self.function(*operands, **options)
        Played.runs += 1
        return True


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Played]]:
    def kept(operation: Any, problem: Any, *operands: Any, variant: Any = None, **options: Any) -> Played:
        return Played(operation, operands, options)

    monkeypatch.setattr(compat.Operation, "kept", kept)
    Played.runs = 0
    with compat.override():  # which ends with what is kept
        yield Played


def dense(seed: int, rows: int = 4, keys: int = 50, placed: bool = False, wide_scale: bool = False) -> dict[str, Any]:
    operands = judge.make_call(rows, keys, 16, 32, "ragged", seed=seed)._asdict()
    if wide_scale:
        operands["k_scale"] = operands["k_scale"][:, None]
    return operands | (placing(seed, rows) if placed else {})


def cached(seed: int, lens: Sequence[int] = (70, 3, 130), next_n: int = 1, placed: bool = False) -> dict[str, Any]:
    names = ("q", "kv_cache", "weights", "context_lens", "block_table")
    operands = dict(zip(names, paged.make_call(list(lens), next_n, seed=seed)[:5], strict=True))
    return operands | (placing(seed, len(lens) * next_n) if placed else {})


def scored(seed: int, rows: int = 4, placed: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randint(0, 60, (rows,), dtype=INT, generator=generator)
    operands = {"logits": torch.randn(rows, 60, generator=generator), "starts": ends // 3, "ends": ends}
    return operands | (placing(seed, rows) if placed else {})


def placing(seed: int, rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 9, shape, dtype=INT, generator=generator)

    return {"offsets": numbers(rows), "page_table": numbers(9, 70), "requests": numbers(rows), "page_size": 4}


LENS = {"max_context_len": 130, "top_k": 9}
CALLS: dict[str, tuple[Callable[..., Any], Callable[[int], dict[str, Any]], dict[str, Any], int]] = {
    "dense": (select_keys, dense, {"top_k": 9}, 2),
    "dense-placed": (select_keys, partial(dense, placed=True), {"top_k": 9, "relative": True}, 2),
    "dense-narrow": (select_keys, partial(dense, wide_scale=True), {"top_k": 9, "max_window": 20}, 2),
    "dense-all": (select_keys, dense, {"top_k": 60}, 1),
    "paged": (select_paged_keys, cached, LENS, 2),
    "paged-drafts": (select_paged_keys, partial(cached, next_n=2, placed=True), LENS, 2),
    "paged-all": (select_paged_keys, partial(cached, next_n=2), {**LENS, "top_k": 200}, 1),
    "logits": (select_from_logits, scored, {"top_k": 9}, 1),
    "logits-placed": (select_from_logits, partial(scored, placed=True), {"top_k": 9, "num_keys": 100}, 1),
}
EVERY = pytest.mark.parametrize(("function", "make", "options", "launches"), CALLS.values(), ids=CALLS)


def results(found: Any) -> list[torch.Tensor]:
    return list(found) if isinstance(found, tuple) else [found]


def rows_of(function: Any, operands: dict[str, Any]) -> int:
    first = operands["logits"] if function is select_from_logits else operands["weights"]
    return int(first.shape[0])


@pytest.mark.parametrize("memory", ["new", "scores", "out", "given"])
@EVERY
def test_a_call_like_two_others_finds_the_same(
    played: type[Played], function: Any, make: Any, options: dict[str, Any], launches: int, memory: str
) -> None:
    options = options | {"return_scores": memory in ("scores", "given")}
    if memory in ("scores", "given") and launches < 2 and function is not select_from_logits:
        launches = 2  # whoever wants scores has them computed
    for turn in range(4):
        operands = make(turn)
        with compat.override():  # in which nothing is remembered
            right = results(function(**operands, **options))
        given: dict[str, Any] = {}
        if memory in ("out", "given"):
            given["out"] = torch.full((rows_of(function, operands), options["top_k"]), 7, dtype=INT)
        if memory == "given":
            given |= {"out_scores": torch.zeros(given["out"].shape), "workspace": torch.zeros(2**14 + 3, dtype=torch.uint8)[3:]}
        before = played.runs
        found = function(**operands, **options, **given)
        assert all(map(torch.equal, results(found), right))
        assert len(results(found)) == len(right)
        assert turn < 2 or played.runs - before == launches
        if given:
            assert results(found)[0] is given["out"]


@EVERY
def test_memory_that_is_read_and_written_is_refused(
    played: type[Played], function: Any, make: Any, options: dict[str, Any], launches: int
) -> None:
    operands = make(0)
    for _ in range(4):
        out = torch.zeros(rows_of(function, operands), options["top_k"], dtype=INT)
        function(**operands, **options, out=out)
    assert played.runs
    name = "context_lens" if function is select_paged_keys else "ends"
    memory = torch.zeros(out.numel() + operands[name].numel(), dtype=INT)
    shared = memory[: operands[name].numel()].copy_(operands[name])
    with pytest.raises(ValueError, match=f"^out: shares memory with {name}"):
        function(**operands | {name: shared}, **options, out=memory[: out.numel()].view(out.shape))


def test_results_may_not_share_memory_with_each_other(played: type[Played]) -> None:
    operands, options = scored(0), {"top_k": 9, "return_scores": True}
    for _ in range(4):
        select_from_logits(**operands, **options, out=torch.zeros(4, 9, dtype=INT), out_scores=torch.zeros(4, 9))
    assert played.runs
    memory = torch.zeros(4, 9)
    with pytest.raises(ValueError, match=r"^out: shares memory with out_scores"):
        select_from_logits(**operands, **options, out=memory.view(INT), out_scores=memory)


@pytest.mark.parametrize("name", ["dense", "paged"])
def test_calls_of_several_turns_are_not_kept(played: type[Played], name: str) -> None:
    function, make, options, _ = CALLS[name]
    for turn in range(4):
        operands = make(turn)
        with compat.override():
            right = function(**operands, **options)
        assert torch.equal(function(**operands, **options, logits_budget_bytes=2048), right)
    assert played.runs == 0


@EVERY
def test_what_cannot_be_kept_goes_the_long_way(
    monkeypatch: pytest.MonkeyPatch, function: Any, make: Any, options: dict[str, Any], launches: int
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(compat.Operation, "kept", lambda *arguments, **keywords: asked.append(arguments))
    operands = make(0)
    with compat.override():
        found = [function(**operands, **options) for _ in range(5)]
    assert all(torch.equal(one, found[0]) for one in found)
    assert len(asked) == launches, "asked about once"


@pytest.mark.parametrize("name", ["dense", "paged"])
def test_a_fused_call_is_not_kept_as_two_steps(played: type[Played], name: str) -> None:
    function, make, options, _ = CALLS[name]
    for turn in range(4):
        operands = make(turn)
        right = function(**operands, **options, fused=False)
        before = played.runs
        assert torch.equal(function(**operands, **options, fused=True), right)
        assert played.runs == before
    assert played.runs, "the others are"
