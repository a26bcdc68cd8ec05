"""What all tests share: results that take long, and which of the tests run where.

Most tests depend on the Triton under test, and run on each; what checks no Triton runs in one lane. The noxfile
runs ``--only=each-triton`` in every lane and ``--only=any-triton`` in one of its default lanes, with Triton hidden, so that a
test that is wrongly declared to need none fails there. Without ``--only`` all of them run. A test that needs a Triton, and
says the same with any, is marked ``one_lane``: the other lanes deselect it.

A grid of cells that run in Triton's interpreter or in the emulator, or are compiled, is marked ``dealt``: one gate, 3.6.0, runs
all of it, and the other lanes, with ``--hand=NUMBER/HANDS``, share its cells out, so that each runs on one of those, too.
``dealt("clean_logits")`` names the parameters of which every lane has all values: what chooses another mode, dtype, layout or
variant. ``dealt(together=("heads", "dim"))`` names those that make a kernel, whose cells one lane has together, since they
share its compile. Each Triton compiles every Gluon tuning for the models' sizes, and what a known bug was about is never dealt.
"""

import gc
import hashlib
import json
import os
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import hypothesis
import pytest
from filelock import FileLock

pytest.register_assert_rewrite("support")  # its assertions say what they compared, as those of the tests do
from support import dealing  # noqa: E402

if TYPE_CHECKING:
    from support.compile_server import Servers

FOLDER = Path(__file__).parent

# Files whose tests all pass without a Triton. Besides these: every test that is marked, as those that get the reference are.
ANY_TRITON = {
    FOLDER / name
    for name in (
        "compat/offline/test_disassembly.py",
        "compat/test_additions.py",
        "compat/test_foreign.py",
        "compat/test_inside.py",
        "compat/test_markdown.py",
        "docs/test_measured.py",
        "docs/test_pages.py",
        "emulator/test_hazards.py",
        "emulator/test_lanes.py",
        "emulator/test_matrix.py",
        "emulator/test_memory.py",
        "emulator/test_scalar.py",
        "emulator/test_vector.py",
        "gfx950/test_slot_model.py",
        "kernels/common/test_checks.py",
        "kernels/dropin/test_binding.py",
        "kernels/dropin/test_homes.py",
        "kernels/dropin/test_hook.py",
        "kernels/dropin/test_install.py",
        "kernels/dropin/test_readers.py",
        "kernels/test_quantize.py",
        "kernels/tools/test_compare.py",
        "kernels/tools/test_other_libraries.py",
        "packaging/test_vendor_triton.py",
        "packaging/test_wheel.py",
        "support/test_compile_server.py",
        "support/test_judge.py",
        "test_lanes.py",
    )
}
MARKED = FOLDER / "kernels"  # the folder where tests are marked one by one; it can be imported without Triton


NO_PARAMETERS = SimpleNamespace(params={})


# An example takes as long as the machine is busy.
hypothesis.settings.register_profile("capgate", deadline=None)
hypothesis.settings.load_profile("capgate")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only", choices=("each-triton", "any-triton"), help="which half of the tests: see tests/conftest.py")
    parser.addoption("--hand", type=dealing.hand, metavar="NUMBER/HANDS", help="of tests that are dealt: see tests/conftest.py")


def pytest_configure(config: pytest.Config) -> None:
    if without_triton(config):
        sys.modules["triton"] = None  # type: ignore[assignment] - importing it is then an ImportError
    if missing := [str(file) for file in ANY_TRITON if not file.exists()]:
        raise pytest.UsageError(f"tests/conftest.py names files that do not exist: {', '.join(missing)}")


def without_triton(config: pytest.Config) -> bool:
    return config.getoption("--only") == "any-triton"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without Triton only files that can be imported then."""
    needless = collection_path in ANY_TRITON or MARKED in collection_path.parents
    return True if without_triton(config) and collection_path.match("test_*.py") and not needless else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path in ANY_TRITON:
            item.add_marker("any_triton")
    only = config.getoption("--only")
    if only:
        choose(config, items, [(item.get_closest_marker("any_triton") is not None) == (only == "any-triton") for item in items])
    if config.getoption("--hand"):
        choose(config, items, dealt(items, *config.getoption("--hand")))


def pytest_collection_finish() -> None:
    """What is there by now stays: a twentieth of all time would go into looking for garbage in it."""
    gc.collect()
    gc.freeze()


def choose(config: pytest.Config, items: list[pytest.Item], chosen: Sequence[bool]) -> None:
    config.hook.pytest_deselected(items=[item for item, keep in zip(items, chosen, strict=True) if not keep])
    items[:] = [item for item, keep in zip(items, chosen, strict=True) if keep]


def dealt(items: Sequence[pytest.Item], number: int, hands: int) -> list[bool]:
    """Which of the tests a hand has: all that are not dealt, and its cells of the others."""
    chosen, grids = [True] * len(items), defaultdict(list)
    for place, item in enumerate(items):
        if item.get_closest_marker("dealt"):
            grids[item.nodeid.partition("[")[0]].append(place)
    for name, places in grids.items():
        cells = [getattr(items[place], "callspec", NO_PARAMETERS).params for place in places]
        mark = items[places[0]].get_closest_marker("dealt")
        first = zlib.crc32(name.partition("::")[0].encode()) % hands  # of a file, whose grids share compiles
        mine = set(dealing.in_hand(cells, mark.args, number, hands, first=first, **mark.kwargs))
        for cell, place in enumerate(places):
            chosen[place] = cell in mine
    return chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that is skipped because Triton is hidden would run nowhere."""
    report = yield
    if without_triton(item.config) and report.skipped and "triton" in str(report.longrepr).lower():
        report.outcome, report.longrepr = "failed", f"declared to need no Triton, but skipped: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Callable[[], Any]], Any]:
    """``once(key, make)`` is what ``make`` returned for an equal key, of JSON types, in whichever of pytest's workers."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # that of all workers of this run

    def shared(key: Any, make: Callable[[], Any]) -> Any:
        file = folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()}.json"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_text(json.dumps(make()))
        return json.loads(file.read_text())

    return shared


@pytest.fixture(scope="session")
def compile_servers() -> Iterator["Servers"]:
    """The processes that fork for a compile, those of this worker."""
    from support.compile_server import Servers

    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture(scope="session")
def compile_once(once: Callable[..., Any], compile_servers: "Servers") -> Callable[..., list[dict[str, Any]]]:
    """``compile_once(operation, target, jobs)``: as capgate's compile_jobs, without its limit of time; a row of one worker
    serves the others under the same switches. It takes a fork of support.compile_server and no new process, so each test asks
    for the jobs that it looks at.

    On gfx942 and gfx950 rows also have the keys of ``support.wait_states``.
    """
    from capgate.compat import capabilities
    from capgate.compat.offline import jobs as offline
    from support.wait_states import with_wait_states

    def rows(operation: str, target: str, jobs: Sequence[Any]) -> list[dict[str, Any]]:
        def compiled() -> list[dict[str, Any]]:
            with mock.patch.object(offline, "Answers", compile_servers.answers), TemporaryDirectory() as folder:
                if target not in ("hip:gfx942", "hip:gfx950"):
                    return offline.compile_jobs(operation, target, jobs)
                return with_wait_states(offline.compile_jobs(operation, target, jobs, save=folder))

        caps = capabilities(target)
        holding = [name for name in caps if caps[name]]  # which switches change
        return once((operation, target, jobs, holding), compiled)

    return rows
