"""pytest's plugin: tests that need a capability, for a target, and a recording of what they launch.

    @pytest.mark.needs("gluon_cdna4")
    def test_my_kernel(): ...

It is loaded with every pytest where capgate is installed, so it imports neither torch nor Triton until a test needs something,
and its options begin with the package's name: other plugins have a ``--target``.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

TARGET = "CAPGATE_TARGET"


def pytest_addoption(parser: "pytest.Parser") -> None:
    """The plugin's options."""
    group = parser.getgroup("capgate", "kernels, by what this Triton can do on this GPU")
    group.addoption("--capgate-target", metavar="TARGET", help="what capabilities are asked of: hip:gfx950, cuda:90, cpu")
    group.addoption("--capgate-record", metavar="FILE", help="note every launch of a Triton kernel there, for capgate check")


def pytest_configure(config: "pytest.Config") -> None:
    """Declare the marker, and begin what the options ask for."""
    import pytest

    from .targets import parse

    config.addinivalue_line("markers", "needs(*capabilities): skip unless capgate's capabilities hold, with the reason why not")
    target, file = config.getoption("--capgate-target"), config.getoption("--capgate-record")
    if target:
        try:
            parse(target)
        except ValueError as error:
            raise pytest.UsageError(f"--capgate-{error}") from error
    if file and not Path(file).parent.is_dir():
        raise pytest.UsageError(f"--capgate-record: got {file!r}, needs a folder that exists")
    if target or file:
        config.pluginmanager.register(_Run(config), "capgate-run")


def pytest_report_header(config: "pytest.Config") -> str:
    """A line with the stack that tests meet."""
    from . import versions
    from ._installation import version
    from ._lookup import capabilities

    try:
        target = str(capabilities().target)
    except ValueError as error:  # a switch that means nothing: the tests that ask will say so as well
        target = str(error)
    found = ", ".join(f"{name} {versions.find(name).text or 'absent'}" for name in ("triton", "torch"))
    return f"capgate {version()}: {found}, target {target}"


def pytest_runtest_setup(item: "pytest.Item") -> None:
    """Skip a test whose needs are not met."""
    import pytest

    from ._lookup import capabilities

    for marker in item.iter_markers("needs"):
        if marker.kwargs or not marker.args:
            pytest.fail(f"needs: got {marker.args} {marker.kwargs}, needs names of capabilities", pytrace=False)
        for name in marker.args:
            try:
                verdict = capabilities()[name]
            except (KeyError, ValueError) as error:
                raise pytest.fail.Exception(f"needs: {error.args[0]}", pytrace=False) from None
            if not verdict:
                pytest.skip(f"needs {name}: {verdict.reason}")


class _Run:
    """What holds from the configuration's begin to its end."""

    def __init__(self, config: "pytest.Config") -> None:
        self._before = os.environ.get(TARGET)
        self._worker = getattr(config, "workerinput", {}).get("workerid")  # of pytest-xdist
        self._record: Any = None
        self._file = config.getoption("--capgate-record")
        if target := config.getoption("--capgate-target"):
            self._set(target)
        if self._file:
            from .check.recorder import Recorder

            self._record = Recorder(f"{self._file}.{self._worker}" if self._worker else self._file)
            self._record.__enter__()
            if self._worker is None:
                for part in self._parts():  # of a run that was killed; workers begin after this
                    part.unlink()

    def pytest_unconfigure(self, config: "pytest.Config") -> None:
        """End it; of several processes the first one takes together what the others noted."""
        self._set(self._before)
        if self._record is None:
            return
        self._record.__exit__(None, None, None)
        if self._worker is None:
            from .check import recordings

            path, parts = Path(self._file), self._parts()
            found: list[Any] = [recordings.DOCUMENT.read(str(file)) for file in (*parts, path)]
            recordings.write(path, recordings.merged(found))
            for part in parts:
                part.unlink()

    def _parts(self) -> list[Path]:
        """What workers noted, each in a file beside."""
        path = Path(self._file)
        return sorted(path.parent.glob(f"{path.name}.gw*"))

    def _set(self, target: str | None) -> None:
        if target is None:
            os.environ.pop(TARGET, None)
        else:
            os.environ[TARGET] = target
