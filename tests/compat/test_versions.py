"""versions: every text gives an answer, nothing is imported that need not be."""

import sys
from types import ModuleType
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capgate.compat import versions
from capgate.compat.versions import Build

VERSION_LIKE = st.text("0123456789.+-_!vabcdegiloprstx ", max_size=40)
RELEASES = st.lists(st.integers(0, 30), min_size=1, max_size=4).map(tuple)


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("3.6.0", (3, 6, 0)),
        ("3.6.0+git1a2b3c4d", (3, 6, 0)),
        ("3.6.0.dev20251120", (3, 6, 0)),
        ("3.6.0rc1", (3, 6, 0)),
        ("3.6.0.post2", (3, 6, 0)),
        ("3.5.1+rocm7.1.0.gitabc", (3, 5, 1)),
        ("3.4.0+gitX+rocm7.1.0.gitX", (3, 4, 0)),
        ("3.7.0+amd.rocm7.2.0.git89abcdef", (3, 7, 0)),
        ("v3.6", (3, 6)),
        ("3.6.0-17-gdeadbee", (3, 6, 0)),
        (" 3.6.0\n", (3, 6, 0)),
        ("main", ()),
        ("+git1a2b", ()),
        ("", ()),
    ],
)
def test_release_in_text(text: str, release: tuple[int, ...]) -> None:
    assert versions.parse_release(text) == release


@given(st.text() | VERSION_LIKE)
def test_any_text_gives_a_release(text: str) -> None:
    release = versions.parse_release(text)
    assert all(isinstance(part, int) and part >= 0 for part in release)


def test_a_very_long_number_gives_a_release() -> None:
    assert versions.parse_release("1" * 5000) == ()


@given(RELEASES, st.sampled_from(["", "+git1a2b", "+gitX+rocm7.1.0.gitX", ".dev3", "rc1", "+amd"]))
def test_a_suffix_never_changes_the_release(release: tuple[int, ...], suffix: str) -> None:
    assert versions.parse_release(".".join(map(str, release)) + suffix) == release


@pytest.mark.parametrize(
    ("release", "at_least", "holds"),
    [
        ((3, 6, 0), (3, 6), True),
        ((3, 6), (3, 6, 0), True),
        ((3, 5, 1), (3, 6), False),
        ((3, 10), (3, 9), True),
        ((4,), (3, 9, 1), True),
        ((3, 7, 0), (3, 7, 1), False),
        ((), (0,), False),
    ],
)
def test_at_least(release: tuple[int, ...], at_least: tuple[int, ...], holds: bool) -> None:
    assert Build("triton", "text", release).at_least(*at_least) is holds


@given(RELEASES, RELEASES)
def test_at_least_is_a_total_order(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    forth, back = Build("triton", "a", one).at_least(*other), Build("triton", "b", other).at_least(*one)
    assert forth or back
    assert (forth and back) == (_stripped(one) == _stripped(other))


def _stripped(release: tuple[int, ...]) -> tuple[int, ...]:
    return _stripped(release[:-1]) if release and release[-1] == 0 else release


@pytest.mark.parametrize(
    "distribution", ["triton", "triton-rocm", "pytorch-triton", "pytorch-triton-rocm", "triton-windows", "amd-triton"]
)
def test_metadata_is_read_without_importing(site, distribution: str) -> None:
    site.package("triton", "raise AssertionError('was imported')")
    site.distribution(distribution, "3.4.0+gitX+rocm7.1.0.gitX")
    assert versions.find("triton") == Build("triton", "3.4.0+gitX+rocm7.1.0.gitX", (3, 4, 0), "metadata")
    assert "triton" not in sys.modules


def test_a_loaded_module_outranks_the_metadata(site, monkeypatch) -> None:
    """A source tree in front of the installed wheel: what is loaded is what runs."""
    site.distribution("triton", "3.5.1")
    loaded = ModuleType("triton")
    loaded.__version__ = "3.6.0+git1a2b"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", loaded)
    assert versions.find("triton") == Build("triton", "3.6.0+git1a2b", (3, 6, 0), "loaded module")


def test_triton_kernels_is_its_own_row(site) -> None:
    for package, version in (("triton", "3.6.0"), ("triton_kernels", "3.5.1")):
        site.package(package)
        site.distribution(package.replace("_", "-"), version)
    assert versions.find("triton").release == (3, 6, 0)
    assert versions.find("triton_kernels") == Build("triton_kernels", "3.5.1", (3, 5, 1), "metadata")


def test_metadata_left_behind_is_no_package(site) -> None:
    """An uninstall that leaves the metadata folder: nothing could be imported."""
    site.distribution("triton-kernels", "3.5.1")
    assert versions.find("triton_kernels") == Build("triton_kernels", None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        pytest.param("__version__ = '3.6.0+local'", Build("triton", "3.6.0+local", (3, 6, 0), "import"), id="version"),
        pytest.param("", Build("triton", "unknown", (), "import"), id="no version"),
        pytest.param("__version__ = 3.6", Build("triton", "3.6", (3, 6), "import"), id="version is no text"),
    ],
)
def test_without_metadata_the_module_is_asked(site, source: str, expected: Build) -> None:
    site.package("triton", source)
    assert versions.find("triton") == expected


@pytest.mark.parametrize("error", ["ImportError('libtriton.so: undefined symbol')", "RuntimeError('no device')", "OSError(5)"])
def test_a_broken_package_without_metadata_is_described(site, error: str) -> None:
    site.package("triton", f"raise {error}")
    build = versions.find("triton")
    assert (build.text, build.release, build.source) == (None, (), "broken")
    assert build.found.startswith("a triton that does not import: ")
    assert not build.at_least(0)


def test_a_folder_of_that_name_is_no_package(site) -> None:
    """As in a checkout of Triton, whose python/ has a folder triton_kernels around the package."""
    site.package("triton_kernels")
    (site.folder / "triton_kernels" / "__init__.py").unlink()
    assert versions.find("triton_kernels") == Build("triton_kernels", None)


@pytest.mark.parametrize(
    ("module", "found"),
    [
        pytest.param(None, "no triton", id="import blocked"),
        pytest.param(ModuleType("triton"), "3.6.0", id="module without spec and version"),
    ],
)
def test_odd_entries_of_sys_modules(site, monkeypatch, module: ModuleType | None, found: str) -> None:
    """Engines block packages with None and leave bare placeholder modules; importlib's find_spec raises for the latter."""
    site.distribution("triton", "3.6.0")
    monkeypatch.setitem(sys.modules, "triton", module)  # type: ignore[arg-type]
    assert versions.importable("triton") is (module is not None)
    assert versions.find("triton").found == found


def test_absent() -> None:
    with mock.patch.dict(sys.modules, {"triton_kernels": None}):  # type: ignore[dict-item]
        assert versions.find("triton_kernels") == Build("triton_kernels", None, (), "absent")


@given(st.text() | VERSION_LIKE | st.none() | st.floats() | st.tuples(st.integers()))
def test_a_loaded_module_may_call_its_version_anything(version: object) -> None:
    module = ModuleType("triton_kernels")
    module.__version__ = version  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, triton_kernels=module):
        build = versions.find("triton_kernels")
    assert build.at_least(*build.release) is bool(build.release)
