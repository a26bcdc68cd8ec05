"""Every test runs in at least one of the lanes that plain ``nox`` runs, and what no Triton changes in one alone; the lanes
but that one share out what is dealt."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from support.dealing import in_hand

REPOSITORY = Path(__file__).parents[1]
ENGINES = "tests/engines"
ANY_TRITON, ONE_LANE = "--only=any-triton", "not one_lane"


def collected(*options: str) -> set[str]:
    """The tests that pytest finds with these options."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    listing = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert listing.returncode == 0, listing.stdout[-4000:] + listing.stderr[-4000:]
    return {line for line in listing.stdout.splitlines() if "::" in line}


@pytest.fixture
def noxfile(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What noxfile.py defines, without nox: its sessions as plain functions, and a wheel that counts as built."""

    def plain(function: Any = None, **_: Any) -> Any:
        return function or plain

    monkeypatch.setitem(sys.modules, "nox", mock.MagicMock(session=plain, parametrize=lambda *_: plain))
    monkeypatch.setitem(sys.modules, "nox.command", mock.MagicMock(CommandFailed=RuntimeError))
    defined = runpy.run_path(str(REPOSITORY / "noxfile.py"))
    defined["built"].append("capgate.whl")
    return defined


@pytest.fixture
def runs(noxfile: dict[str, Any], tmp_path: Path) -> dict[str, list[tuple[str, ...]]]:
    """The options that each lane's runs of pytest have, besides those for its workers."""
    workers, found = noxfile["WORKERS"], {}
    for lane in noxfile["LANES"]:
        session = mock.MagicMock(posargs=[], cache_dir=str(tmp_path), **{"create_tmp.return_value": str(tmp_path)})
        noxfile["tests"](session, lane)
        commands = [call.args for call in session.run.call_args_list if call.args[0] == "pytest"]
        assert all(command[1 : 1 + len(workers)] == workers for command in commands)
        found[lane] = [command[1 + len(workers) :] for command in commands]
    return found


def test_without_triton_all_tests_are_found_that_are_left_out_elsewhere() -> None:
    """What is not marked runs in every lane; no parameter and no file of what is marked depends on a Triton."""
    found = collected(ANY_TRITON)
    assert found == collected("-m", "any_triton")
    assert found


def test_what_needs_no_triton_and_what_says_the_same_with_any_runs_in_one_lane(
    noxfile: dict[str, Any], runs: dict[str, list[tuple[str, ...]]]
) -> None:
    hidden = [lane for lane, lines in runs.items() for options in lines if options == (ANY_TRITON,)]
    with_triton = {lane: [options for options in lines if ANY_TRITON not in options] for lane, lines in runs.items()}
    everything = [lane for lane, lines in with_triton.items() if not any("-m" in options for options in lines)]
    assert hidden == everything == [noxfile["WHOLE"]]
    assert noxfile["WHOLE"] in noxfile["GATES"]
    whole = with_triton.pop(noxfile["WHOLE"])
    for lane, lines in with_triton.items():
        assert [without_hand(options) for options in lines] == [(*options, "-m", ONE_LANE) for options in whole], lane


def without_hand(options: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(option for option in options if not option.startswith("--hand="))


def test_one_gate_runs_every_cell_and_each_other_lane_has_a_hand(
    noxfile: dict[str, Any], runs: dict[str, list[tuple[str, ...]]]
) -> None:
    hands = {lane: [[option for option in options if "--hand" in option] for options in lines] for lane, lines in runs.items()}
    assert (*noxfile["GATES"], *noxfile["FORWARD"]) == tuple(runs)
    assert not any(hands.pop(noxfile["WHOLE"]))
    for number, (lane, options) in enumerate(hands.items(), 1):
        assert options == [[f"--hand={number}/{len(hands)}"]] * 2, lane


def test_hands_have_every_cell_together_and_every_value_of_what_is_kept_each() -> None:
    grid = [{"size": size, "mode": mode, "kind": kind} for size in range(5) for kind in "ab" for mode in (True, False, None)]
    found = [in_hand(grid, ("mode", "kind"), number, 3) for number in (1, 2, 3)]
    assert sorted({cell for cells in found for cell in cells}) == list(range(len(grid)))
    for cells in found:
        assert {grid[cell]["mode"] for cell in cells} == {True, False, None}
        assert {grid[cell]["kind"] for cell in cells} == {"a", "b"}
        assert len(cells) <= len(grid) / 3 + 2, "the others' modes are all that a hand has besides its third"
    assert in_hand(grid[:1], ("mode",), 3, 3) == [0], "a value that one cell alone has is in every hand"
    assert in_hand(grid, (), 2, 3) == list(range(1, len(grid), 3))


def test_a_hand_has_all_that_is_not_dealt_and_its_cells_of_what_is() -> None:
    file = "tests/kernels/key_cache/test_key_cache.py"
    grids = {"test_each_key_lands_in_its_slot_and_nowhere_else", "test_gathered_keys_lie_side_by_side"}
    every, mine = (collected(file, "--only=each-triton", *options) for options in ((), ("--hand=2/3",)))
    assert mine < every
    assert {name_of(test) for test in every - mine} == grids
    assert {name_of(test) for test in mine} == {name_of(test) for test in every} > grids


def name_of(test: str) -> str:
    return test.partition("[")[0].partition("::")[2]


def test_the_parts_of_a_lane_have_each_test_once(runs: dict[str, list[tuple[str, ...]]]) -> None:
    """What one of them leaves out is what the other one is for, and exists."""
    for lane, lines in runs.items():
        production, interpreter = ([option for option in options if "tests/" in option] for options in lines[:2])
        assert production == [f"--ignore={folder}" for folder in (*interpreter, ENGINES)], lane
        assert interpreter, lane
        assert all((REPOSITORY / folder).is_dir() for folder in interpreter), lane


def test_the_engines_are_called_in_sessions_of_their_own(noxfile: dict[str, Any], tmp_path: Path) -> None:
    """Each folder of tests/engines by one, whose environment names it; a lane would find none of it."""
    folders = {folder.name for folder in (REPOSITORY / ENGINES).iterdir() if list(folder.glob("test_*.py"))}
    assert set(noxfile["ENGINES"]) == folders
    (tmp_path / "aiter").mkdir()
    for engine in folders:
        session = mock.MagicMock(posargs=[], cache_dir=str(tmp_path), **{"create_tmp.return_value": str(tmp_path)})
        noxfile["engines"](session, engine)
        assert {call.args[-1] for call in session.run.call_args_list} == {f"{ENGINES}/{engine}"}
        assert {call.kwargs["env"]["ENGINE_UNDER_TEST"] for call in session.run.call_args_list} == {engine}


def test_without_an_engine_its_tests_are_skipped_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", ENGINES]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "ENGINE_UNDER_TEST"))}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 5, done.stdout  # no tests ran
    for folder in (REPOSITORY / ENGINES).glob("*/test_*.py"):
        assert f"nox -s 'engines({folder.parent.name})'" in done.stdout
