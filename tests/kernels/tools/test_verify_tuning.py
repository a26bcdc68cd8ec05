"""Tunings that ``capgate verify --tune`` tries: which, which of them is written, and that cases are judged with theirs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.compat.tunings import Tunings
from capgate.kernels import cli
from capgate.kernels.common.tuning import Tuning
from capgate.kernels.mqa_logits.operation import operation as dense
from capgate.kernels.tools.verify import child, tuning, verdicts
from capgate.kernels.tools.verify.timed import timed

pytestmark = pytest.mark.usefixtures("no_gpu")
CASE = "rows 3 keys 150 heads 64 dim 128 packed clean"


def test_candidates_are_a_step_away_from_the_row() -> None:
    row = Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2)
    changes = tuning.around(row)
    assert {"num_stages": 2} in changes
    assert {"num_stages": 4} in changes
    assert {"block_keys": 32} in changes
    assert {"num_warps": 8} in changes
    assert {"resident": 3} in changes
    assert all(row._replace(**fields) != row for fields in changes)
    waves = tuning.around(row._replace(resident=3, options=(("waves_per_eu", 3), ("x", 1))))
    assert {"options": [["waves_per_eu", 2], ["x", 1]], "resident": 2} in waves
    assert {"resident": 4} not in waves, "a SIMD holds as many waves as a CU has programs for"


class Timings:
    """In the place of a runner: milliseconds by the fields of a tuning, verdicts by theirs, and which do not compile."""

    def __init__(self, times: dict[str, float], wrong: str = "", broken: str = "") -> None:
        self.times, self.wrong, self.broken = times, wrong, broken

    def in_order(self, asked: Any) -> Iterator[Any]:
        for job in asked:
            if job["what"] == "candidates":
                yield job, {"words": "", "candidates": [{name: 1} for name in self.times if name]}
            else:
                yield job, {"words": "", "median_ms": self.times[self._changed(job)]}

    def side_by_side(self, groups: Any, workers: int) -> Iterator[Any]:
        for job in (job for group in groups for job in group):
            name = self._changed(job)
            if job["what"] == "prepare":
                yield job, {"words": "no such layout" if name == self.broken else ""}
            else:
                agrees = name != self.wrong or job["case"] == "a"
                yield job, {"verdict": verdicts.AGREES if agrees else verdicts.DISAGREES, "words": ""}

    def _changed(self, job: Any) -> str:
        return next(iter(job["tuning"]["fields"]), "") if "tuning" in job else ""


@pytest.mark.parametrize(
    ("timings", "best"),
    [
        (Timings({"": 1.0, "slow": 1.2, "fast": 0.8, "faster": 0.7}), "faster"),
        (Timings({"": 1.0, "slow": 1.2, "fast": 0.8, "faster": 0.7}, wrong="faster"), "fast"),
        (Timings({"": 1.0, "slow": 1.2, "fast": 0.8, "faster": 0.7}, broken="faster"), "fast"),
        (Timings({"": 1.0, "even": 0.99}), None),
    ],
)
def test_the_fastest_that_agrees_is_written(timings: Any, best: str | None) -> None:
    place = tuning.Place("classic", next(each for each in timed() if each.where))
    rows = list(tuning.tune(timings, 2, [place], lambda place: ["a", "b"]))
    if best is None:
        assert rows == []
        return
    (row,) = rows
    assert row["fields"] == {best: 1}
    assert (row["before_ms"], row["after_ms"]) == (1.0, timings.times[best])
    document = {"tunings": 1, "target": "cuda:90", "device": "NVIDIA H200", "triton": "3.6.0", "rows": rows}
    loaded = Tunings("file", document["target"], document["device"], document["rows"])  # type: ignore[arg-type]
    problem = dense.example("cuda:90") if dense.example else None
    with compat.override(tunings=loaded):
        found = dense.loaded("classic", problem)  # type: ignore[arg-type]
    assert found is not None
    assert found.fields == {best: 1}


def test_a_case_is_judged_with_the_tuning_of_its_job(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    kernel: Any = dense.load(dense.variants["classic"])
    prepare = kernel._prepare

    def seeing(problem: Any, *operands: Any, **options: Any) -> Any:
        seen.append(kernel.tuning(problem))
        return prepare(problem, *operands, **options)

    monkeypatch.setattr(kernel, "_prepare", seeing)
    row = {"operation": "fp8_mqa_logits", "variant": "classic", "where": {"heads": 64}, "fields": {"block_keys": 32}}
    job = {"what": "judge", "operation": "fp8_mqa_logits", "variant": "classic", "case": CASE}
    device = child.Child(torch.device("cpu"), small=True, flush_bytes=0)
    for asked, keys in ((job, 64), ({**job, "tuning": row}, 32)):
        seen.clear()
        assert device.judge(asked)["verdict"] == verdicts.AGREES
        assert {tune.block_keys for tune in seen} == {keys}


def test_tuning_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "run.json"), "--markdown", str(tmp_path / "run.md")]
    assert cli.main(["verify", "--tune", str(tmp_path / "tunings.json"), *files]) == 2
    assert "--tune: found no GPU, needs one to take times on" in capsys.readouterr().err
