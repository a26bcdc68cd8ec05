"""How a batch's keys are shared out among workers."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capgate import compat
from capgate.compat.offline.jobs import Job, compile_jobs
from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers
from capgate.kernels.common.schedule.operation import CHUNK_KEYS
from support import paged

BATCHES = {
    "one": [1],
    "empty": [0, 0, 0],
    "none": [],
    "mixed": [300, 0, 128, 129, 0, 5, 70000, 0],
    "many": [(37 * request) % 1000 for request in range(700)],
    "negative": [-5, 200, -(2**31), 1],
    "extreme": [2**31 - 1] * 3,
    "rows": [[300, 10, 4], [0, 0, 0], [1, 900, 2], [-1, -2, -3]],
}


def chunks(batch: list) -> list[int]:
    contexts = [max(request) if isinstance(request, list) else request for request in batch]
    return [-(-max(context, 0) // CHUNK_KEYS) for context in contexts]


@pytest.fixture(params=["public", "classic"])
def make(request: pytest.FixtureRequest):
    if request.param == "public":
        return lambda lens, workers: paged_mqa_schedule(lens, 64, workers)
    request.getfixturevalue("interpreter")
    from capgate.kernels.common.schedule import classic

    def make_schedule(lens: torch.Tensor, workers: int) -> torch.Tensor:
        schedule, launches = classic.new_schedule(lens, workers)
        for launch in launches:
            launch()
        return schedule

    return make_schedule


@pytest.mark.parametrize("workers", [1, 2, 15, 16, 132])
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_workers_get_all_chunks_in_order_and_equally_many(make, batch: list, workers: int) -> None:
    schedule = make(torch.tensor(batch, dtype=torch.int32), workers)
    assert (schedule.shape, schedule.dtype) == ((workers + 1, 2), torch.int32)
    sizes = torch.tensor(chunks(batch), dtype=torch.int64)
    before = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    request, chunk = schedule.long().unbind(1)
    assert torch.equal(before[request] + chunk, before[-1] * torch.arange(workers + 1) // workers)
    assert schedule[-1].tolist() == [len(batch), 0]
    inside = request < len(batch)
    assert (chunk[inside] < sizes[request[inside]]).all(), "a worker begins at a chunk that its request does not have"


def test_lengths_of_any_strides(make) -> None:
    lens = torch.arange(60, dtype=torch.int32).reshape(6, 10) * 50
    for view in (lens[:, 3], lens[::2, 1:9:3], lens.mT[:, :4][:3].mT):
        assert torch.equal(make(view, 5), make(view.contiguous(), 5))


# Whatever a schedule holds

LOWEST, HIGHEST = -(2**31), 2**31 - 1
words = st.one_of(
    st.integers(-3, 6),
    st.sampled_from([LOWEST, LOWEST + 1, HIGHEST, HIGHEST - 1, 2**24, 2**25, 2**30, -(2**24), -(2**25), -(2**30)]),
    st.integers(LOWEST, HIGHEST),
)


@given(st.lists(st.tuples(words, words), min_size=2, max_size=4), st.booleans())
@example([(-3, 0), (0, 0)], False)  # requests in front of the batch
@example([(0, -2), (4, 0)], False)  # keys in front of a request
@example([(LOWEST, 5), (HIGHEST, 5)], True)
@example([(HIGHEST, HIGHEST), (LOWEST, HIGHEST)], False)  # a difference that wraps to one request
@example([(0, 2**25), (4, 2**25)], False)  # chunks whose first key is request 0's, in 32 bits
@example([(3, 1), (1, 0), (9, 9)], False)  # backwards
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@pytest.mark.usefixtures("interpreter")
def test_any_schedule_writes_logits_or_nothing(schedule: list, clean_logits: bool) -> None:
    """Requests and keys in front of an operand, or behind it, would be those of poisoned tensors that it is cut out of."""
    call, spare = paged.make_call([30, 0, 130, 17], 1, 1, block=16), 6
    rows = slice(spare, spare + 4)
    for name, poison in {"weights": float("nan"), "context_lens": 140, "block_table": 0}.items():
        tensor = getattr(call, name)
        around = torch.full((4 + 2 * spare, *tensor.shape[1:]), poison, dtype=tensor.dtype)
        around[rows] = tensor
        call = call._replace(**{name: around[rows]})
    answer = paged.formula(call, 140)
    out = torch.full((4 + 2 * spare, 200), 7.0)
    cells = out[rows, :140]
    fp8_paged_mqa_logits(
        *call,
        max_context_len=140,
        clean_logits=clean_logits,
        schedule=torch.tensor(schedule, dtype=torch.int32),
        out=cells,
        variant="classic",
    )
    scored = answer.inside & (cells != 7.0)
    paged.judge.agree(cells[scored], answer.logits[scored], answer.magnitude[scored])
    assert (cells[~answer.inside] == (float("-inf") if clean_logits else 7.0)).all()
    cells.fill_(7.0)
    assert (out == 7.0).all()


@pytest.mark.parametrize(
    ("target", "variant"), [("cuda:90", "gluon_hopper"), ("hip:gfx950", "gluon_cdna4"), ("cuda:90", "classic")]
)
def test_compiled_kernels_cut_every_word_before_anything_else(target: str, variant: str, tmp_path: Path) -> None:
    caps = compat.capabilities(target)
    if variant != "classic" and not caps[variant]:
        pytest.skip(caps.why(variant))
    (row,) = compile_jobs("fp8_paged_mqa_logits", target, [Job(variant)], save=tmp_path)
    assert row["compiled"], row["error"]
    pointers, loaded, uses = {"%schedule"}, [], []
    for line in (tmp_path / f"{variant}.unclean.ttgir").read_text().splitlines():
        found = re.match(r"\s*(%\w+) = ([\w.]+) (.*)", line)
        name, operation, operands = found.groups() if found else ("", "", line)
        read = re.findall(r"%\w+", operands)
        uses += [(operation, "%c0_i32" in read) for operand in read if operand in loaded]
        if operation in ("tt.addptr", "tt.load") and read[0] in pointers:
            (loaded.append if operation == "tt.load" else pointers.add)(name)
    assert uses == [("arith.maxsi", True)] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (([1], 64, 4), TypeError, "context_lens"),
        ((torch.ones(3), 64, 4), TypeError, "context_lens"),
        ((torch.ones(3, 9, dtype=torch.int32), 64, 4), ValueError, "context_lens"),
        ((torch.ones(3, 1, 1, dtype=torch.int32), 64, 4), ValueError, "context_lens"),
        ((torch.ones(3, dtype=torch.int32), 40, 4), ValueError, "block_size"),
        ((torch.ones(3, dtype=torch.int32), "64", 4), TypeError, "block_size"),
        ((torch.ones(3, dtype=torch.int32), 64, 0), ValueError, "num_workers"),
        ((torch.ones(3, dtype=torch.int32), 64, 1.5), TypeError, "num_workers"),
    ],
)
def test_bad_input_is_refused_by_name(arguments: tuple, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=f"^{named}: got "):
        paged_mqa_schedule(*arguments)


# How many workers


@pytest.mark.parametrize("next_n", [1, 2, 3, 8])
@pytest.mark.parametrize("clean_logits", [False, True])
def test_a_variant_wants_the_workers_that_it_takes_itself(interpreter, monkeypatch, next_n, clean_logits) -> None:
    from capgate.kernels.common.schedule import classic as schedules
    from capgate.kernels.paged_mqa_logits import classic

    made, new_schedule = [], schedules.new_schedule
    monkeypatch.setattr(schedules, "multiprocessors", lambda device: 5)
    monkeypatch.setattr(classic, "new_schedule", lambda lens, workers: made.append(workers) or new_schedule(lens, workers))
    call = paged.make_call([5, 130], next_n, 64, 32)
    fp8_paged_mqa_logits(*call, max_context_len=130, clean_logits=clean_logits, variant="classic")
    assert made == [paged_mqa_workers(call.q, call.kv_cache, clean_logits=clean_logits, variant="classic")]
    assert made[0] > 1


def test_workers_do_not_depend_on_the_batch(variant: str) -> None:
    call = paged.make_call([5, 130], 1, 64, 32)
    workers = paged_mqa_workers(call.q, call.kv_cache, variant=variant)
    assert workers == paged_mqa_workers(call.q[:0], call.kv_cache[:0], variant=variant) >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        ({"q": [1.0]}, TypeError, "q"),
        ({"q": torch.zeros(2, 16, 32).to(torch.float8_e4m3fn)}, ValueError, "q"),
        ({"kv_cache": torch.zeros(2, 64, 1, 36)}, TypeError, "kv_cache"),
        ({"clean_logits": 1}, TypeError, "clean_logits"),
        ({"variant": 1}, TypeError, "variant"),
        ({"variant": "fastest"}, ValueError, "variant"),
    ],
)
def test_bad_arguments_of_workers(arguments, error, named) -> None:
    call = paged.make_call([5, 130], 1, 64, 32)
    with pytest.raises(error, match=f"^{named}: "):
        paged_mqa_workers(**{"q": call.q, "kv_cache": call.kv_cache, **arguments})
