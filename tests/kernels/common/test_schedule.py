"""How a batch's keys are shared out among workers."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers
from support import paged, schedules

Make = Callable[[torch.Tensor, int, int], torch.Tensor]
CHUNKS = (128, 256)
BATCHES = {
    "one": [1],
    "empty": [0, 0, 0],
    "none": [],
    "mixed": [300, 0, 128, 129, 0, 5, 70000, 0],
    "many": [(37 * request) % 1000 for request in range(700)],
    "negative": [-5, 200, -(2**31), 1],
    "extreme": [2**31 - 1] * 3,
    "rows": [[4, 10, 300], [0, 0, 0], [900, 2, 1], [-3, -2, -1], [700, 700, 0]],
}


def make_publicly(lens: torch.Tensor, workers: int, chunk_keys: int) -> torch.Tensor:
    return paged_mqa_schedule(lens, 64, workers, chunk_keys=chunk_keys)


def make_classic(lens: torch.Tensor, workers: int, chunk_keys: int) -> torch.Tensor:
    from capgate.kernels.common.schedule import classic

    planned = classic.new_schedule(lens, workers, chunk_keys)
    for launch in planned.before:
        launch()
    return planned.schedule


@pytest.fixture(params=[pytest.param("public", marks=pytest.mark.any_triton), "classic"])
def make(request: pytest.FixtureRequest) -> Make:
    if request.param == "public":
        return make_publicly
    request.getfixturevalue("interpreter")
    return make_classic


def is_met_by_a_reader_that_steps(schedule: list[list[int]], units: list[int]) -> None:
    """Every unit is taken once, in order, by a reader that would go on past the batch if it did not meet its end."""
    taken = list(schedules.read(schedule, units))
    assert [place for share in taken for place in share] == schedules.places(units)
    sizes = [len(share) for share in taken]
    assert sizes == sorted(sizes), "a worker has more than one behind it"
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.dealt("batch")
@pytest.mark.parametrize(
    ("batch", "workers", "chunk_keys"),
    [  # every two of the three with each other
        (batch, workers, CHUNKS[(number + place) % 2])
        for number, batch in enumerate(BATCHES)
        for place, workers in enumerate([1, 2, 15, 16, 40])
    ],
)
def test_schedules_are_deep_gemms(make: Make, batch: str, workers: int, chunk_keys: int) -> None:
    check_schedule_is_deep_gemms(make, BATCHES[batch], workers, chunk_keys)


def check_schedule_is_deep_gemms(make: Make, batch: list, workers: int, chunk_keys: int) -> None:
    schedule = make(torch.tensor(batch, dtype=torch.int32), workers, chunk_keys)
    assert (schedule.shape, schedule.dtype) == ((workers + 1, 2), torch.int32)
    units = schedules.units_of(batch, chunk_keys)
    if sum(units) > 10**6:  # too many to step through
        begin, end = [0, 0], [len(batch), 0]
        assert schedule[0].tolist() == begin
        assert schedule[-1].tolist() == end
        before = torch.tensor([0, *units]).cumsum(0)
        request, unit = schedule.long().unbind(1)
        steps = (before[request] + unit).diff()
        assert torch.equal(steps, steps.sort().values)
        assert steps.max() - steps.min() <= 1
        return
    assert list(map(tuple, schedule.tolist())) == schedules.even(units, workers)
    is_met_by_a_reader_that_steps(schedule.tolist(), units)


def test_the_described_example() -> None:
    lens = torch.tensor([300, 0, 1000], dtype=torch.int32)
    assert paged_mqa_schedule(lens, 64, 4, chunk_keys=256).tolist() == [[0, 0], [0, 1], [2, 0], [2, 2], [3, 0]]


lengths = st.one_of(st.just(0), st.integers(-3, 700), st.sampled_from([127, 128, 129, 255, 256, 257, 512]))


@pytest.mark.dealt
@pytest.mark.parametrize("maker", [make_publicly, make_classic], ids=["public", "classic"])
@given(st.lists(lengths, max_size=12), st.integers(1, 40), st.sampled_from(CHUNKS))
@example([], 3, 256)
@example([0, 0], 2, 256)
@example([0, 1, 0], 5, 256)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@pytest.mark.usefixtures("interpreter")
def test_a_reader_that_steps_meets_every_end(maker: Make, lens: list[int], workers: int, chunk_keys: int) -> None:
    schedule = maker(torch.tensor(lens, dtype=torch.int32), workers, chunk_keys).tolist()
    units = schedules.units_of(lens, chunk_keys)
    is_met_by_a_reader_that_steps(schedule, units)
    left = sum(units)
    for begin, share in zip(schedule, schedules.read(schedule, units), strict=False):
        assert (begin == [len(lens), 0]) == (left == 0)
        left -= len(share)


@pytest.mark.parametrize("chunk_keys", CHUNKS)
def test_a_schedule_is_made_where_it_is_asked_for(chunk_keys: int) -> None:
    lens = torch.tensor([300, 0, 1000], dtype=torch.int32)
    memory = torch.full((9, 2), 7, dtype=torch.int32)
    out = memory[2:7]
    assert paged_mqa_schedule(lens, 64, 4, chunk_keys=chunk_keys, out=out) is out
    assert torch.equal(out, paged_mqa_schedule(lens, 64, 4, chunk_keys=chunk_keys))
    assert (memory[:2] == 7).all()
    assert (memory[7:] == 7).all()


def test_lengths_of_any_strides(make: Make) -> None:
    lens = torch.arange(60, dtype=torch.int32).reshape(6, 10) * 50
    for view in (lens[:, 3], lens[::2, 1:9:3], lens.mT[:, :4][:3].mT):
        assert torch.equal(make(view, 5, 128), make(view.contiguous(), 5, 128))


# Schedules of others


def written_by(kernel_call: Callable[[torch.Tensor, torch.Tensor], None], schedule: list, rows: int, columns: int) -> list:
    """For each worker alone, which cells it writes: [rows, columns] of bool."""
    cells = []
    for worker in range(len(schedule) - 1):
        out = torch.full((rows, columns), 7.0)
        kernel_call(torch.tensor(schedule[worker : worker + 2], dtype=torch.int32), out)
        cells.append(out != 7.0)
    return cells


@pytest.mark.dealt("chunk_keys", "next_n")
@pytest.mark.parametrize(
    ("kind", "chunk_keys", "next_n"),
    [  # every two of the three with each other
        (kind, chunk_keys, 1 + (number + place) % 2)
        for number, kind in enumerate(["even", "front", "shifted", "half"])
        for place, chunk_keys in enumerate(CHUNKS)
    ],
)
@pytest.mark.usefixtures("interpreter")
def test_every_worker_of_a_foreign_schedule_scores_its_share(kind: str, chunk_keys: int, next_n: int) -> None:
    """Whoever made it, and with however many workers: each scores the keys of its units, and none those of another."""
    lens = [300, 0, 1, 700, 0, 256, 257, 0]
    units = schedules.units_of(lens, chunk_keys)
    total = sum(units)
    schedule = {
        "even": schedules.even(units, 5),
        "front": schedules.cut(units, [0, total - 2, total - 1, total]),  # the first worker has nearly everything
        "shifted": schedules.cut(units, [0, 1, 1, total // 2 + 1]),  # one has nothing
        "half": schedules.even(units, 2),
    }[kind]
    call = paged.make_call(lens, next_n)
    answer = paged.formula(call, 700)

    def score(entries: torch.Tensor, out: torch.Tensor) -> None:
        fp8_paged_mqa_logits(
            *call, max_context_len=700, schedule=entries, schedule_chunk_keys=chunk_keys, out=out, variant="classic"
        )

    shares = list(schedules.read(schedule, units))
    for share, written in zip(shares, written_by(score, schedule, len(lens) * next_n, 700), strict=True):
        own = torch.zeros(len(lens), 700, dtype=torch.bool)
        for request, unit in share:
            own[request, unit * chunk_keys : (unit + 1) * chunk_keys] = True
        assert torch.equal(written, answer.inside & own.repeat_interleave(next_n, 0))
    out = torch.full(answer.logits.shape, 7.0)
    score(torch.tensor(schedule, dtype=torch.int32), out)
    paged.judge.agree(out[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    assert (out[~answer.inside] == 7.0).all()


@pytest.mark.dealt
@pytest.mark.parametrize(("workers", "processors"), [(2, 3), (3, 4), (4, 2), (1, 3)])
def test_schedules_of_few_workers_fill_the_device(interpreter, monkeypatch, workers: int, processors: int) -> None:
    """Programs take turns at a worker's tiles: none has more than its part of them, and each tile has one."""
    from capgate.kernels.common.schedule import classic as schedules_made
    from capgate.kernels.paged_mqa_logits import classic
    from capgate.kernels.paged_mqa_logits.api import describe
    from capgate.kernels.paged_mqa_logits.operands import Inputs

    monkeypatch.setattr(schedules_made, "multiprocessors", lambda device: processors)
    lens, keys = [300, 0, 1, 700, 65], 64
    call = paged.make_call(lens)
    inputs = Inputs(*call, paged_mqa_schedule(call.context_lens, 64, workers, chunk_keys=256))
    problem, out = describe(inputs, False), torch.full((5, 700), 7.0)
    (launch,) = classic.prepare(problem, inputs, out, clean_logits=False, chunk_keys=256)
    fit = classic.kernel.workers(problem)
    programs = launch.grid[0]
    assert fit / 2 < programs <= max(fit, workers)
    assert launch.keywords["BLOCK_KEYS"] == keys
    splits, written = programs // workers, []
    for count in range(1, programs + 1):
        before = out != 7.0
        out.fill_(7.0)
        launch._replace(grid=(count, 1))()
        now = out != 7.0
        assert (now | ~before).all()
        written.append(sum(int((now & ~before)[:, tile : tile + keys].any(1).sum()) for tile in range(0, 700, keys)))
    answer = paged.formula(call, 700)
    paged.judge.agree(out[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    assert (out[~answer.inside] == 7.0).all()
    assert sum(written) == sum(-(-length // keys) for length in lens)
    for worker in range(workers):
        shares = written[worker * splits : (worker + 1) * splits]
        assert max(shares) - min(shares) <= 1


@pytest.mark.dealt("chunk_keys")
@pytest.mark.parametrize("chunk_keys", CHUNKS)
@pytest.mark.parametrize("workers", [1, 3, 40])
def test_rows_that_see_more_than_the_last_one_are_scored(variant: str, workers: int, chunk_keys: int) -> None:
    """A schedule counts the last row's keys; some worker takes the others', also where a request has none to count."""
    for lens in ([[300, 0], [0, 0], [130, 10], [0, 300], [200, 0]], [[5, 0], [300, -1]], [[0, 0], [1, 0], [2, 1]]):
        call = paged.make_call(lens, 2)
        schedule = paged_mqa_schedule(call.context_lens, 64, workers, chunk_keys=chunk_keys)
        paged.check(call, variant, 300, clean_logits=True, schedule=schedule, schedule_chunk_keys=chunk_keys)


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
    ("arguments", "error", "named"),
    [
        (([1], 64, 4), TypeError, "context_lens"),
        ((torch.ones(3), 64, 4), TypeError, "context_lens"),
        ((torch.ones(3, 65536, dtype=torch.int32), 64, 4), ValueError, "context_lens"),
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


@pytest.mark.parametrize(
    ("keywords", "error", "named"),
    [
        ({"chunk_keys": 64}, ValueError, "chunk_keys"),
        ({"chunk_keys": 128.0}, TypeError, "chunk_keys"),
        ({"chunk_keys": None}, TypeError, "chunk_keys"),
        ({"out": [[0, 0]] * 5}, TypeError, "out"),
        ({"out": torch.zeros(4, 2, dtype=torch.int32)}, ValueError, "out"),
        ({"out": torch.zeros(5, 2)}, TypeError, "out"),
        ({"out": torch.zeros(5, 2, dtype=torch.int32, device="meta")}, ValueError, "out"),
        ({"out": torch.zeros(2, 5, dtype=torch.int32).mT}, ValueError, "out"),
    ],
)
def test_bad_options_are_refused_by_name(keywords: dict, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=f"^{named}: got "):
        paged_mqa_schedule(torch.ones(3, dtype=torch.int32), 64, 4, **keywords)


def test_a_schedule_is_not_made_over_its_lengths() -> None:
    memory = torch.zeros(10, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^out: shares memory with context_lens, needs "):
        paged_mqa_schedule(memory[7:], 64, 4, out=memory.view(5, 2))


@pytest.mark.parametrize(("chunk_keys", "error"), [(64, ValueError), (0, ValueError), ("128", TypeError), (True, TypeError)])
def test_chunks_that_no_schedule_has_are_refused(chunk_keys: object, error: type[Exception]) -> None:
    call = paged.make_call([5, 130])
    with pytest.raises(error, match=r"^schedule_chunk_keys: got "):
        fp8_paged_mqa_logits(*call, max_context_len=130, schedule_chunk_keys=chunk_keys)


# How many workers


@pytest.mark.parametrize("next_n", [1, 2, 3, 8])
@pytest.mark.parametrize("clean_logits", [False, True])
def test_a_variant_wants_the_workers_that_it_takes_itself(interpreter, monkeypatch, next_n, clean_logits) -> None:
    from capgate.kernels.common.schedule import classic as schedules
    from capgate.kernels.common.schedule import plan

    made, new_schedule = [], schedules.new_schedule
    monkeypatch.setattr(schedules, "multiprocessors", lambda device: 5)

    def noted(lens, workers, *more, **options):
        made.append(workers)
        return new_schedule(lens, workers, *more, **options)

    monkeypatch.setattr(plan, "new_schedule", noted)
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
