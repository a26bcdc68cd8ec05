"""Which tests run where. Most depend on the Triton under test, and run on each; what checks no Triton runs in one lane.

The noxfile runs ``--only=each-triton`` in every lane and ``--only=any-triton`` in one of its default lanes, with Triton hidden, so
that a test that is wrongly declared to need none fails there. Without ``--only`` all of them run.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent

# Files whose tests all pass without a Triton. Besides these: every test that is marked, as those that get the reference are.
ANY_TRITON = {
    FOLDER / name
    for name in (
        "gfx950/test_lanes.py",
        "gfx950/test_matrix.py",
        "gfx950/test_memory.py",
        "gfx950/test_scalar.py",
        "gfx950/test_vector.py",
        "kernels/test_compare.py",
        "kernels/test_dropin_install.py",
        "kernels/test_judge.py",
        "kernels/test_listing.py",
        "kernels/test_quantize.py",
        "packaging/test_readme.py",
        "packaging/test_vendor_triton.py",
        "packaging/test_wheel.py",
        "test_lanes.py",
    )
}
MARKED = FOLDER / "kernels"  # the folder where tests are marked one by one; it can be imported without Triton


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--only", choices=("each-triton", "any-triton"), help="which half of the tests: see tests/conftest.py")


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
        chosen = [item for item in items if (item.get_closest_marker("any_triton") is not None) == (only == "any-triton")]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A test that is skipped because Triton is hidden would run nowhere."""
    report = yield
    if without_triton(item.config) and report.skipped and "triton" in str(report.longrepr).lower():
        report.outcome, report.longrepr = "failed", f"declared to need no Triton, but skipped: {report.longrepr}"
    return report
