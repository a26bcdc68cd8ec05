"""The selection compiled for GPUs that are not here, by this lane's Triton: it fits, and nothing spills."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat import capabilities
from capgate.compat.offline import jobs as offline
from capgate.compat.offline.jobs import Job, compile_variants
from capgate.kernels.key_selection.operation import MODES, operation

# And their shared memory; gfx950's compiles are tests/gfx950/test_select_keys.py's, which executes them.
TARGETS = {"cuda:90": 227 * 1024, "hip:gfx942": 64 * 1024}
# The launches that hold most, and what a serving call asks for where its programs are counted.
SERVED = [Job("classic", mode="indices"), Job("classic", mode="indices", dtype="bfloat16")]
FILTERED = Job("classic", mode="filtered")
HOLDING = [Job("classic", mode=mode) for mode in ("scores", "long", "cut", "candidates")]
CASES = [
    *(("cuda:90", job) for job in SERVED),
    *(pytest.param("cuda:90", job, marks=pytest.mark.dealt) for job in (*HOLDING, FILTERED)),
    *(pytest.param("hip:gfx942", job, marks=pytest.mark.dealt) for job in HOLDING),
]
# Bytes that Triton 3.9.0 spills and the others do not, of what no loop changes: six and one of the registers.
SPILLED = {"long": 112, "filtered": 8}


@pytest.mark.parametrize(("target", "job"), CASES, ids=lambda value: value if isinstance(value, str) else value.mode)
def test_classic_fits_without_spills(compile_once: Callable[..., Any], target: str, job: Job) -> None:
    """Known bug 3: Shared-memory overflow on parts with 64 KiB. A spill would hit every count of the search."""
    (row,) = compile_once("select_keys", target, [job])
    assert row["compiled"], row["error"]
    assert row["lds_bytes"] <= TARGETS[target]
    if row["mode"] in SPILLED and target == "cuda:90":
        assert row["spills"] <= SPILLED[row["mode"]]
    else:
        assert (row["spills"], row["scratch_bytes"]) == (0, 0)
    assert row["waves_per_simd"] >= 2, "not even one program of eight waves fits"
    assert (row["heads"], row["dim"], row["dtype"]) == (None, None, job.dtype or "float32")


@pytest.mark.skipif(not capabilities("cuda:90").gluon_hopper, reason=capabilities("cuda:90").why("gluon_hopper"))
@pytest.mark.parametrize("dtype", [None, "bfloat16"], ids=["float32", "bfloat16"])
def test_sections_are_filtered_without_spills(compile_once: Callable[..., Any], dtype: str | None) -> None:
    job = Job("gluon_hopper", mode="cut", dtype=dtype)
    (row,) = compile_once("select_keys", "cuda:90", [job])
    assert row["compiled"], row["error"]
    assert (row["spills"], row["scratch_bytes"]) == (0, 0)
    assert row["waves_per_simd"] >= 6, "not as many programs of an SM as rows are cut for"


@pytest.mark.parametrize("job", SERVED, ids=lambda job: job.dtype or "float32")
def test_five_programs_share_an_sm(compile_once: Callable[..., Any], job: Job) -> None:
    (row,) = compile_once("select_keys", "cuda:90", [job])
    assert row["waves_per_simd"] == 5


@pytest.mark.parametrize("target", ["cuda:80", "cuda:90", "hip:gfx950"])
def test_the_report_knows_which_variant_a_target_takes(target: str) -> None:
    """It needs no fp8: any GPU that Triton compiles for will do."""
    trace = operation.explain(operation.example(target))
    assert trace.variant == "classic", str(trace)


def test_all_modes_are_compiled_unless_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(offline, "compile_jobs", lambda operation, target, jobs, **options: asked.extend(jobs) or [])
    compile_variants("select_keys", "cuda:90")
    assert [(job.variant, job.mode) for job in asked] == [(name, mode) for name in operation.variants for mode in tuple(MODES)]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"modes": ["clean"]}, "mode: got 'clean', needs one of indices, scores, long, filtered, cut, candidates"),
        ({"dtype": "float8_e4m3fn"}, "dtype: got 'float8_e4m3fn', needs float32 or bfloat16: "),
    ],
)
def test_what_does_not_exist_is_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        compile_variants("select_keys", "cuda:90", **arguments)
