"""When select_keys takes the fused way, and why not; and the operation's reference, which is two steps in torch."""

import itertools
import re
import subprocess
import sys
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import select_keys, select_paged_keys
from capgate.kernels.fused_selection import calls, launches, reference, scratch, tunings
from capgate.kernels.fused_selection import operation as fusing
from capgate.kernels.key_selection import operands
from capgate.kernels.key_selection.results import Results
from capgate.kernels.paged_mqa_logits import operation as logits
from capgate.kernels.paged_mqa_logits import tunings as logits_tunings
from support import judge, paged


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("rows", "keys", "next_n"), [(5, 80, None), (0, 80, None), (3, 0, None), (4, 70, 2), (0, 0, 1)], ids=str
)
def test_the_reference_is_two_steps(rows: int, keys: int, next_n: int | None) -> None:
    options: dict[str, Any] = {"top_k": 9, "return_scores": True, "variant": "reference"}
    if next_n is None:
        call: Any = judge.make_call(rows, keys, 4, 32, "ragged")
        function, more = select_keys, {"offsets": torch.arange(rows, dtype=torch.int32)}
    else:
        call, function = paged.make_call([keys] * (rows // next_n), next_n, 4, 32), select_paged_keys
        table = torch.arange(100, dtype=torch.int32).flip(0).expand(max(rows // next_n, 1), 100)
        more = {"max_context_len": keys, "page_table": table}
    two = function(*call, **options, **more, logits_variant="reference")
    one = function(*call, **options, **more, fused=True)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


# --- the choice -----------------------------------------------------------------------------------------------------------


def step_of(trace: compat.Trace, variant: str) -> Any:
    """What a trace says of a variant."""
    return next(step for step in trace.steps if step.variant == variant)


def reason(problem: fusing.Problem, operation: Any = fusing.dense) -> str:
    """Why the classic variant does not take a problem; "" if it does, or for want of a measurement alone."""
    step = step_of(operation.explain(problem), "classic")
    return "" if step.accepted or step.reason.startswith("not measured to be faster") else str(step.reason)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ""),
        ({"keys": 8192}, "rows of about 8192 keys are two steps: top_k 2048 is fused from 16384 keys on"),
        ({"keys": 8192, "top_k": 512}, ""),
        ({"rows": 2, "keys": 2**20, "top_k": 1}, ""),
        ({"budget": 2**10}, "needs .* bytes for lists of programs: found a budget of 1024"),
        ({"top_k": 4096}, "needs top_k of at most 2048: found 4096"),
        ({"asked": True, "keys": 64}, ""),
    ],
    ids=str,
)
def test_shapes_alone_say_why_a_problem_is_not_fused(changed: dict[str, Any], words: str) -> None:
    assert re.fullmatch(words, reason(fusing.example("cuda:90")._replace(**changed)))


def test_lists_of_one_row_are_not_asked_for_on_amd() -> None:
    decode = fusing.example_paged("hip:gfx950")._replace(asked=True)
    assert tunings.classic(decode).rows == 2
    trace = fusing.dense.explain(fusing.example("hip:gfx950")._replace(heads=128, asked=True))
    assert "needs at most 64 heads on AMD" in step_of(trace, "classic").reason


def test_a_row_that_many_programs_would_share_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "multiprocessors", lambda device: 132)
    one = fusing.example_paged("cuda:90")._replace(rows=1, keys=2**20, top_k=512)
    assert "rows would be shared by about 397 programs" in reason(one, fusing.paged)
    assert reason(one._replace(rows=64, keys=131072), fusing.paged) == ""
    few = fusing.example("cuda:90")._replace(rows=64, keys=16384)
    assert reason(few) == "each program would see about 1323 keys of a row: top_k 2048 is fused from 8192 on"


@pytest.mark.parametrize("operation", [fusing.dense, fusing.paged], ids=lambda operation: operation.name)
@pytest.mark.parametrize("target", ["cuda:90", "hip:gfx950"])
def test_nothing_is_fused_by_default_before_it_was_measured_to_be_faster(operation: Any, target: str) -> None:
    problem = operation.example(target)
    assert fusing.why_two_steps(problem) is None
    gluon = {"hip:gfx950": "gluon_cdna4", "cuda:90": "gluon_hopper"}[target]
    taken = compat.capabilities(target)[gluon]
    for keys in (problem.keys, 2**18, 2**20):
        trace = operation.explain(problem._replace(keys=keys))
        assert trace.variant == "reference"
        for variant in ("classic", gluon) if taken else ("classic",):
            assert "not measured to be faster than two steps" in step_of(trace, variant).reason
    assert operation.explain(problem, "classic").variant == "classic"
    assert operation.explain(problem._replace(asked=True)).variant == (gluon if taken else "classic")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top_k": 4096}, "needs top_k of at most 2048: found 4096"),
        ({"heads": 32}, "needs a multiple of 4 heads, 36 to 64, .*: found 32"),
        ({"heads": 62}, "needs a multiple of 4 heads, 36 to 64, .*: found 62"),
        ({"tensor_maps": False}, "needs operands that tensor maps describe"),
        ({"budget": 2**10}, "needs .* bytes for lists of programs: found a budget of 1024"),
    ],
    ids=str,
)
@pytest.mark.skipif(not compat.capabilities("cuda:90").gluon_hopper, reason=compat.capabilities("cuda:90").why("gluon_hopper"))
def test_what_warps_do_not_take_is_said(changed: dict[str, Any], words: str) -> None:
    problem = fusing.example("cuda:90")._replace(asked=True)
    assert fusing.dense.explain(problem).variant == "gluon_hopper"
    assert re.match(words, step_of(fusing.dense.explain(problem._replace(**changed)), "gluon_hopper").reason)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top_k": 4096}, "needs top_k of at most 2048: found 4096"),
        ({"heads": 62}, "needs a multiple of 4 heads: found 62"),
        (
            {"heads": 32, "rows": 192, "next_n": 3},
            "needs one or two rows a request, or more than 32 heads, .*: found 3 rows and 32",
        ),
        ({"layout": "preshuffled"}, "needs a flat cache, .*: found a preshuffled one"),
        ({"block_size": 48}, "needs blocks of a multiple of 32 keys, .*: found 48"),
        ({"tensor_maps": False}, "needs operands that tensor maps describe"),
        ({"budget": 2**10}, "needs .* bytes for lists of programs: found a budget of 1024"),
    ],
    ids=str,
)
@pytest.mark.skipif(not compat.capabilities("cuda:90").gluon_hopper, reason=compat.capabilities("cuda:90").why("gluon_hopper"))
def test_what_warps_do_not_take_of_a_cache_is_said(changed: dict[str, Any], words: str) -> None:
    problem = fusing.example_paged("cuda:90")._replace(asked=True)
    assert fusing.paged.explain(problem).variant == "gluon_hopper"
    assert re.match(words, step_of(fusing.paged.explain(problem._replace(**changed)), "gluon_hopper").reason)


@pytest.mark.skipif(not compat.capabilities("cuda:90").gluon_hopper, reason=compat.capabilities("cuda:90").why("gluon_hopper"))
def test_warps_sum_over_heads_as_the_logits_kernel_does() -> None:
    """The order of a sum follows from a program's rows (query_box): with more in the logits' kernel, logits may differ."""
    problem = fusing.example_paged("cuda:90")._replace(asked=True)
    scored = logits.operation.example("cuda:90")
    for heads, next_n in itertools.product(range(4, 129, 4), range(1, 9)):
        cached = problem._replace(heads=heads, rows=64 * next_n, next_n=next_n)
        alike = (
            tunings.gluon_hopper_paged(cached).rows
            == logits_tunings.gluon_hopper(scored._replace(heads=heads, next_n=next_n)).rows
        )
        assert (fusing.paged.explain(cached, "gluon_hopper").variant == "gluon_hopper") == alike


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top_k": 4096}, "needs top_k of at most 2048: found 4096"),
        ({"heads": 65}, "needs at most 64 heads, so that a wave's lanes are keys of one row: found 65"),
        ({"packets": False}, "needs q and k in 16-byte aligned rows of adjacent elements"),
        ({"dtype": "float8_e4m3fnuz"}, "needs gfx942: found gfx950"),
        ({"budget": 2**10}, "needs .* bytes for lists of programs: found a budget of 1024"),
    ],
    ids=str,
)
@pytest.mark.skipif(
    not compat.capabilities("hip:gfx950").gluon_cdna4, reason=compat.capabilities("hip:gfx950").why("gluon_cdna4")
)
def test_what_the_gluon_variant_does_not_take(changed: dict[str, Any], words: str) -> None:
    problem = fusing.example("hip:gfx950")._replace(asked=True)
    assert step_of(fusing.dense.explain(problem), "gluon_cdna4").accepted
    assert re.search(words, step_of(fusing.dense.explain(problem._replace(**changed)), "gluon_cdna4").reason)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"top_k": 4096}, "needs top_k of at most 2048: found 4096"),
        ({"heads": 65}, "needs at most 64 heads, so that a wave's lanes are keys of one row: found 65"),
        ({"packets": False}, "needs 16-byte aligned blocks .*, and q in 16-byte aligned rows of adjacent elements"),
        ({"dtype": "float8_e4m3fnuz"}, "needs gfx942: found gfx950"),
        ({"budget": 2**10}, "needs .* bytes for lists of programs: found a budget of 1024"),
    ],
    ids=str,
)
@pytest.mark.skipif(
    not compat.capabilities("hip:gfx950").gluon_cdna4, reason=compat.capabilities("hip:gfx950").why("gluon_cdna4")
)
def test_what_the_gluon_variant_does_not_take_of_a_cache(changed: dict[str, Any], words: str) -> None:
    problem = fusing.example_paged("hip:gfx950")._replace(asked=True)
    for taken in ({}, {"layout": "preshuffled"}, {"block_size": 1}, {"next_n": 5}, {"tensor_maps": False}):
        assert fusing.paged.explain(problem._replace(**taken)).variant == "gluon_cdna4"
    assert re.search(words, step_of(fusing.paged.explain(problem._replace(**changed)), "gluon_cdna4").reason)


@pytest.mark.skipif(
    not compat.capabilities("hip:gfx950").gluon_cdna4, reason=compat.capabilities("hip:gfx950").why("gluon_cdna4")
)
def test_queries_and_blocks_that_cannot_be_copied_are_left_to_classic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat.targets, "of_device", lambda device: compat.Target("hip", "gfx950", 64))
    call = paged.make_call([130, 7], 2, 4, 32)
    turned = call.q.view(torch.uint8).transpose(-1, -2).contiguous().transpose(-1, -2).view(call.q.dtype)
    results = Results(torch.empty((4, 9), dtype=torch.int32), None)
    for taken, variant in (
        (call, "gluon_cdna4"),
        (call._replace(q=turned), "classic"),
        (paged.make_call([130, 7], 2, 4, 32, gap=4), "classic"),
    ):
        trace = calls.explain_paged(operands.Paged(*taken), results, 2**31, True, max_context_len=130, layout="flat")
        assert trace.variant == variant


@pytest.mark.any_triton
def test_by_default_and_where_a_variant_is_named_two_steps_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference of the fused operation is no choice of theirs, nor where it is named in the switch."""
    monkeypatch.setattr(reference, "launch", lambda *arguments, **options: pytest.fail("fused"))
    call = judge.make_call(5, 80, 4, 32, "full")
    with compat.override(variant="select_keys=reference,fp8_mqa_logits=reference"):
        default = select_keys(*call, top_k=9)
        assert torch.equal(select_keys(*call, top_k=9, fused=False), default)
        with compat.override(variant="fp8_select_keys=reference"):
            assert torch.equal(select_keys(*call, top_k=9), default)
    assert torch.equal(select_keys(*call, top_k=9, variant="reference", logits_variant="reference"), default)


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"fused": 1}, TypeError, "fused: got int, needs a bool"),
        ({"fused": True, "logits_variant": "reference"}, ValueError, "logits_variant: got 'reference' with fused=True, needs"),
        ({"fused": True, "variant": "gluon"}, ValueError, "variant: fp8_select_keys has no variant 'gluon'"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_named(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        select_keys(*judge.make_call(2, 80, 4, 32, "full"), top_k=9, **options)


@pytest.mark.any_triton
def test_memory_is_of_programs_and_not_of_rows_or_keys() -> None:
    """What the page of the design promises for an H200, and for its decode."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "multiprocessors", lambda device: 132)
        prefill, decode = fusing.example("cuda:90"), fusing.example_paged("cuda:90")
        assert scratch.bytes_needed(prefill) == 64_880_640
        assert scratch.bytes_needed(prefill._replace(rows=1, keys=1)) == 64_880_640
        assert scratch.bytes_needed(prefill._replace(top_k=512)) == 16_220_160
        assert scratch.bytes_needed(decode) == 38_928_384
        tune = tunings.classic(prefill)
        assert (tune.rows, tune.block_entries, tune.segment_tiles) == (2, 6144, 16)
        assert scratch.bytes_needed(prefill, tunings.gluon_hopper(prefill)) == 112_459_776
        few = prefill._replace(top_k=512)
        assert scratch.bytes_needed(few, tunings.gluon_hopper(few)) == 80_019_456


@pytest.mark.any_triton
@pytest.mark.parametrize(("next_n", "needed"), [(1, 150_994_944), (2, 251_658_240), (4, 301_989_888)])
def test_memory_of_waves_on_an_mi350(next_n: int, needed: int) -> None:
    """What the page of the design says of cached keys, by the programs that LDS has room for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "multiprocessors", lambda device: 256)
        decode = fusing.example_paged("hip:gfx950")._replace(next_n=next_n)
        assert scratch.bytes_needed(decode, tunings.gluon_cdna4_paged(decode)) == needed


@pytest.mark.any_triton
@pytest.mark.parametrize(
    ("rows", "keys", "top_k", "splits"),
    [(4096, 65536, 2048, 5), (8192, 131072, 512, 7), (8192, 8192, 2048, 1), (8, 131072, 2048, 66), (528, 65536, 2048, 1)],
)
def test_groups_that_are_left_are_shared_so_that_programs_end_together(rows: int, keys: int, top_k: int, splits: int) -> None:
    """By gluon_hopper's 132 programs of 4 rows; 66 is what gives each one share, and memory bounds what is more than that."""
    problem = fusing.example("cuda:90")._replace(rows=rows, keys=keys, top_k=top_k)
    meta = {"device": "meta", "dtype": torch.int32}
    inputs: Any = operands.Dense(torch.empty((rows, 64, 128), **meta), torch.empty((keys, 128), **meta), *[None] * 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "multiprocessors", lambda device: 132)
        tune = tunings.gluon_hopper(problem)
        plan = launches.plan_of(problem, inputs, top_k, None, tune, None)
        assert plan.splits == splits
        taken = 8 * plan.running * tune.rows * scratch.list_entries(tune, top_k) + 8 * plan.shared * tune.rows * plan.slot_row
        assert taken <= scratch.bytes_needed(problem, tune)


@pytest.mark.any_triton
@pytest.mark.parametrize("top_k", [1, 32, 512, 513, 1024, 1025, 2048])
def test_a_run_has_room_for_all_that_is_kept(top_k: int) -> None:
    """In gluon_hopper's lists: an eighth more than top_k, for the tiles before the next look, and 16 places that are none.
    Where most of what registers hold is kept a run may grow by as much again."""
    tune = tunings.gluon_hopper(fusing.example("cuda:90")._replace(top_k=top_k))
    room = tune.block_entries // 4
    assert room - 16 >= top_k + top_k // 8 + 32 * tune.segment_tiles
    assert tune.held_entries == {1: 1024, 32: 1024, 512: 1280, 513: 1536, 1024: 1536, 1025: 2048, 2048: 2048}[top_k]
    assert tune.held_entries <= room // 2


@pytest.mark.any_triton
@pytest.mark.parametrize("top_k", [1, 512, 513, 2048])
@pytest.mark.parametrize("heads", [16, 32, 64])
def test_a_list_of_a_wave_has_room_for_a_turn_of_tiles(top_k: int, heads: int) -> None:
    """Behind what is kept: cached keys' lists are looked at after whole turns."""
    tune = tunings.gluon_cdna4_paged(fusing.example_paged("hip:gfx950")._replace(top_k=top_k, heads=heads))
    assert tune.block_entries - top_k >= tune.num_stages * tune.block_keys


@pytest.mark.any_triton
def test_select_keys_needs_no_import_of_what_scores() -> None:
    """A process that asks for this function alone has the logits' operators, too."""
    code = (
        "import torch\nfrom capgate.kernels import select_keys\n"
        "q, k = torch.zeros(2, 4, 32).to(torch.float8_e4m3fn), torch.zeros(9, 32).to(torch.float8_e4m3fn)\n"
        "ends = torch.full((2,), 9, dtype=torch.int32)\n"
        "select_keys(q, k, torch.ones(9), torch.ones(2, 4), torch.zeros_like(ends), ends, top_k=3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
