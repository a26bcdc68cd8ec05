"""pytest's plugin, in a pytest of somebody who has capgate installed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from capgate.compat.check import recordings

pytestmark = pytest.mark.one_lane

TESTS = """
import pytest

@pytest.mark.needs("wgmma")
def test_hopper():
    pass

@pytest.mark.needs("wgmma", "gluon_cdna4")
class TestBoth:
    def test_never(self):
        raise AssertionError
"""
LAUNCHES = """
import pytest, torch, triton
import triton.language as tl

@triton.jit
def fill(x, SIZE: tl.constexpr):
    tl.store(x + tl.arange(0, SIZE), 1.0)

@pytest.mark.parametrize("size", [8, 16, 32])
def test_fill(size):
    x = torch.zeros(size)
    fill[(1,)](x, SIZE=size)
    assert x.sum() == size
"""


def run(folder: Path, text: str, *options: str, **variables: str) -> tuple[int, str]:
    """The status of a pytest on one file, and what it printed."""
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_it.py").write_text(text)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CAPGATE_", "PYTEST_"))}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "--strict-markers", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    status, printed = run(tmp_path, TESTS, "--capgate-target", "cuda:90")
    assert status == 0, printed
    assert "1 passed, 1 skipped" in printed
    assert re.search("needs gluon_cdna4: .*needs gfx950: found sm90", printed)
    (header,) = [line for line in printed.splitlines() if line.startswith("capgate ")]
    assert header.endswith("target cuda:90")
    status, printed = run(tmp_path, TESTS, CAPGATE_TARGET="hip:gfx950")
    assert "2 skipped" in printed
    assert "needs wgmma: needs sm90: found gfx950" in printed


def test_a_misspelt_need_is_an_error(tmp_path: Path) -> None:
    status, printed = run(tmp_path, TESTS.replace('"wgmma"', '"wgmna"'))
    assert status != 0
    assert "no capability 'wgmna'" in printed
    assert "wgmma" in printed


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--capgate-target", "gfx95", "ERROR: --capgate-target: got 'gfx95', which is no AMD architecture; the nearest are "),
        ("--capgate-record", "nowhere/r.json", "ERROR: --capgate-record: got 'nowhere/r.json', needs a folder that exists"),
    ],
)
def test_a_wrong_option_is_an_error_before_any_test(option: str, value: str, words: str, tmp_path: Path) -> None:
    status, printed = run(tmp_path, TESTS, option, value)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert printed.startswith(words)


def test_what_workers_launch_is_one_recording(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    pytest.importorskip("torch")
    pytest.importorskip("triton")
    (tmp_path / "launches.json.gw7").touch()  # of a run that was killed
    status, printed = run(tmp_path, LAUNCHES, "--capgate-record", "launches.json", "-n", "2", TRITON_INTERPRET="1")
    assert status == 0, printed
    launches = recordings.DOCUMENT.read(str(tmp_path / "launches.json"))["launches"]
    assert sorted(launch["arguments"]["SIZE"]["value"] for launch in launches) == [8, 16, 32]
    assert [file.name for file in tmp_path.glob("launches.json*")] == ["launches.json"]
