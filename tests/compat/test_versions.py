"""versions: every text gives an answer, nothing is imported that need not be."""

import base64
import hashlib
import json
import subprocess
import sys
from types import ModuleType
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capgate.compat import versions
from capgate.compat.releases import parse_release
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
    assert parse_release(text) == release


@given(st.text() | VERSION_LIKE)
def test_any_text_gives_a_release(text: str) -> None:
    release = parse_release(text)
    assert all(isinstance(part, int) and part >= 0 for part in release)


def test_a_very_long_number_gives_a_release() -> None:
    assert parse_release("1" * 5000) == ()


@given(RELEASES, st.sampled_from(["", "+git1a2b", "+gitX+rocm7.1.0.gitX", ".dev3", "rc1", "+amd"]))
def test_a_suffix_never_changes_the_release(release: tuple[int, ...], suffix: str) -> None:
    assert parse_release(".".join(map(str, release)) + suffix) == release


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


def test_a_loaded_module_outranks_the_metadata(site, monkeypatch, tmp_path) -> None:
    """A source tree in front of the installed wheel: what is loaded is what runs."""
    site.package("triton")
    site.distribution("triton", "3.5.1", record="triton/__init__.py,,\n")
    loaded = ModuleType("triton")
    loaded.__file__, loaded.__path__ = str(tmp_path / "tree" / "triton" / "__init__.py"), []
    loaded.__version__ = "3.6.0+git1a2b"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", loaded)
    assert versions.find("triton") == Build("triton", "3.6.0+git1a2b", (3, 6, 0), "loaded module")


# Whose files they are

LISTED = "triton/__init__.py,,\n"


def _hashed(source: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(source.encode()).digest()).rstrip(b"=").decode()
    return f"triton/__init__.py,sha256={digest},{len(source)}\n"


def test_the_distribution_that_lists_the_files_owns_them(site) -> None:
    """A provider was swapped, and the metadata of the one before stayed under the better-known name."""
    site.package("triton")
    site.distribution("triton", "3.4.0", record="")
    site.distribution("triton-of-a-vendor", "3.6.0+vendor", record=LISTED)
    assert versions.find("triton") == Build("triton", "3.6.0+vendor", (3, 6, 0), "metadata")


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_owners_the_one_with_the_file_s_checksum_is_right_and_the_other_is_said(site, order: int) -> None:
    site.package("triton", source := "# of the second\n")
    owners = [("triton", "3.4.0", _hashed("# of the first\n")), ("triton-rocm", "3.6.0+rocm", _hashed(source))]
    for name, version, record in owners[::order]:
        site.distribution(name, version, record=record)
    build = versions.find("triton")
    assert build.text == "3.6.0+rocm (of triton-rocm; triton 3.4.0 lists the same files)"
    assert build.release == (3, 6, 0)


@pytest.mark.parametrize("file", ["__init__.py", "version.py"])
def test_of_two_owners_without_checksums_the_files_own_word_decides(site, file: str) -> None:
    site.package("triton")
    (site.folder / "triton" / file).write_text('__version__ = "3.4.0"\n')
    site.distribution("triton", "3.6.0", record=LISTED)
    site.distribution("pytorch-triton-rocm", "3.4.0+rocm6", record=LISTED)
    assert versions.find("triton").text == "3.4.0+rocm6 (of pytorch-triton-rocm; triton 3.6.0 lists the same files)"
    assert "triton" not in sys.modules


def test_files_that_name_another_release_than_their_owner_are_believed(site) -> None:
    """Files were copied over an installation."""
    site.package("triton", '__version__ = "3.6.0"')
    site.distribution("triton", "3.4.0", record=LISTED)
    assert versions.find("triton") == Build("triton", "3.6.0 (triton 3.4.0 lists its files)", (3, 6, 0), "source")


@pytest.mark.parametrize("own", ['__version__ = "3.6.0"', ""], ids=["the files name one", "they do not"])
@pytest.mark.parametrize("record", [LISTED, None], ids=["listed", "unlisted"])
def test_the_words_are_the_same_before_and_after_the_import(site, own: str, record: str | None) -> None:
    site.package("triton", own)
    site.distribution("triton", "3.6.0+vendor", record=record)
    site.distribution("pytorch-triton", "3.4.0", record=record)
    before = versions.find("triton").found
    __import__("triton")
    assert versions.find("triton").found == before


def test_an_editable_install_owns_the_folder_it_points_at(site, tmp_path, monkeypatch) -> None:
    tree = tmp_path / "a checkout"
    (tree / "python" / "triton").mkdir(parents=True)
    (tree / "python" / "triton" / "__init__.py").write_text("")
    direct = {"url": tree.as_uri(), "dir_info": {"editable": True}}
    (site.distribution("triton-fork", "3.7.0+git1", record="") / "direct_url.json").write_text(json.dumps(direct))
    (site.distribution("triton-nightly", "3.8.0", record="") / "direct_url.json").write_text('{"url": 3, "dir_info": []}')
    monkeypatch.syspath_prepend(str(tree / "python"))
    for module in [module for module in sys.modules if module.partition(".")[0] == "triton"]:
        monkeypatch.delitem(sys.modules, module)
    assert versions.find("triton") == Build("triton", "3.7.0+git1", (3, 7, 0), "metadata")


def test_an_egg_info_beside_the_package_is_metadata_too(site) -> None:
    site.package("triton")
    (site.folder / "triton.egg-info").mkdir()
    (site.folder / "triton.egg-info" / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: triton\nVersion: 3.3.1\n")
    assert versions.find("triton") == Build("triton", "3.3.1", (3, 3, 1), "metadata")


def test_metadata_beside_the_package_of_another_name_is_not_its_own(site) -> None:
    site.package("triton", '__version__ = "3.6.0"')
    for name in ("tritonclient", "triton-kernels"):
        site.distribution(name, "3.6.0+another")
    assert versions.find("triton").text == "3.6.0"


@pytest.mark.parametrize(
    ("metadata", "version"),
    [
        pytest.param(None, None, id="no file"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"Name: triton\nVersion: 3.4.0\nAuthor: J\xfcrgen\n", "3.4.0", id="latin-1"),
        pytest.param(b"Name: triton\r\nVersion: 3.4.0\r\n\r\nVersion: 9\r\n", "3.4.0", id="carriage returns"),
        pytest.param(b"\xff\xfe\x00\x01", "3.4.0", id="no text: the folder's name serves"),
    ],
)
def test_metadata_of_any_bytes_gives_an_answer(site, metadata: bytes | None, version: str | None) -> None:
    site.package("triton", "")
    info = site.distribution("triton", "3.4.0")
    (info / "METADATA").unlink()
    if metadata is not None:
        (info / "METADATA").write_bytes(metadata)
    assert versions.find("triton").text == (version or "unknown")


def test_a_list_of_files_of_any_bytes_gives_an_answer(site) -> None:
    site.package("triton", "")
    info = site.distribution("triton", "3.4.0", record="")
    (info / "RECORD").write_bytes(b"\xff\xfe,,\ntriton/__init__.py,md5=?,x\n")
    assert versions.find("triton").text == "3.4.0"


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
        pytest.param("__version__ = '3.6.0+local'", Build("triton", "3.6.0+local", (3, 6, 0), "source"), id="version"),
        pytest.param("", Build("triton", "unknown", (), "import"), id="no version"),
        pytest.param("__version__ = 3.6", Build("triton", "3.6", (3, 6), "import"), id="version is no text"),
    ],
)
def test_without_metadata_the_module_is_asked(site, source: str, expected: Build) -> None:
    site.package("triton", source)
    assert versions.find("triton") == expected


@pytest.mark.parametrize(
    "error",
    [
        "ImportError('libtriton.so: undefined symbol')",
        "RuntimeError('no device')",
        "OSError(5)",
        "SystemExit(3)",
        "type('PanicException', (BaseException,), {})('of Rust')",
    ],
)
def test_a_broken_package_without_metadata_is_described(site, error: str) -> None:
    site.package("triton", f"raise {error}")
    build = versions.find("triton")
    assert (build.text, build.release, build.source) == (None, (), "broken")
    assert build.found.startswith("a triton that does not import: ")
    assert not build.at_least(0)


def test_an_interrupted_import_is_no_answer(site) -> None:
    site.package("triton", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        versions.find("triton")


def test_a_lazy_module_whose_attributes_raise_gives_an_answer(site) -> None:
    site.package("triton", "def __getattr__(name): raise RuntimeError(name)")
    assert versions.find("triton") == Build("triton", "unknown", (), "import")
    assert versions.find("triton") == Build("triton", "unknown", (), "import"), "loaded by now"


# What stands in its place


def test_a_folder_of_that_name_is_no_package(site) -> None:
    """As in a checkout of Triton, whose python/ has a folder triton_kernels around the package."""
    site.package("triton_kernels")
    (site.folder / "triton_kernels" / "__init__.py").unlink()
    folder = f"no triton_kernels: {site.folder / 'triton_kernels'} is a folder of that name without code"
    for _ in ("on the path", "imported"):
        build = versions.find("triton_kernels")
        assert (build.text, build.found) == (None, folder)
        __import__("triton_kernels")


def test_a_file_of_that_name_is_no_package(site) -> None:
    """A script called triton.py in the working folder, in front of the installed wheel."""
    site.package("triton")
    (site.folder / "triton" / "__init__.py").unlink()
    (site.folder / "triton").rmdir()
    (site.folder / "triton.py").write_text("__version__ = '3.6.0'")
    site.distribution("triton", "3.6.0")
    for _ in ("on the path", "imported"):
        build = versions.find("triton")
        assert (build.text, build.found) == (None, f"no triton: {site.folder / 'triton.py'} is a single file of that name")
        __import__("triton")


def test_an_import_that_is_blocked(site, monkeypatch) -> None:
    site.distribution("triton", "3.6.0")
    monkeypatch.setitem(sys.modules, "triton", None)  # type: ignore[arg-type]
    assert versions.find("triton") == Build("triton", None)


class Placeholder(ModuleType):
    """What an engine leaves in the place of a Triton that is missing."""

    __version__ = "3.4.0"


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (ModuleType("triton"), "no triton: a module without a file, made by hand, is in sys.modules"),
        (
            Placeholder("triton"),
            f"no triton: a placeholder is in sys.modules, a {__name__}.Placeholder of {__file__}, which calls itself 3.4.0",
        ),
    ],
    ids=["bare", "of an engine"],
)
def test_a_placeholder_says_what_it_is_and_where_it_lies(site, monkeypatch, module: ModuleType, found: str) -> None:
    site.package("triton")
    site.distribution("triton", "3.6.0", record=LISTED)
    monkeypatch.setitem(sys.modules, "triton", module)
    monkeypatch.setitem(sys.modules, __name__, mock.Mock(__file__=__file__))  # pytest may not have put this module there
    build = versions.find("triton")
    assert (build.text, build.found) == (None, found)
    assert not build.at_least(0)


def test_absent() -> None:
    with mock.patch.dict(sys.modules, {"triton_kernels": None}):  # type: ignore[dict-item]
        assert versions.find("triton_kernels") == Build("triton_kernels", None, (), "absent")


# Whether it imports


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        pytest.param("print('welcome')", "", id="imports"),
        pytest.param("from json import gone", "ImportError: cannot import name 'gone' from 'json'", id="ImportError"),
        pytest.param("raise OSError('two\\nlines')", "OSError: two lines", id="two lines"),
        pytest.param("raise SystemExit(0)", "SystemExit: 0", id="exits"),
        pytest.param("import os; os._exit(0)", "the import ended its process with status 0", id="ends the process"),
        pytest.param("import os; os.abort()", "the import ended its process with status -6", id="aborts"),
    ],
)
def test_what_an_import_raises_is_asked_in_another_process(site, source: str, failure: str) -> None:
    site.package("triton_kernels", source)
    site.distribution("triton-kernels", "3.6.0")
    said = versions.import_failure("triton_kernels")
    assert said.startswith(failure) if failure else not said
    assert "triton_kernels" not in sys.modules


def test_an_import_is_tried_once_for_each_build(site, tmp_path) -> None:
    trail = tmp_path / "trail"
    site.package("triton_kernels", f"with open({str(trail)!r}, 'a') as file: file.write('x')\nraise ImportError('broken')")
    site.distribution("triton-kernels", "3.6.0")
    assert {versions.import_failure("triton_kernels") for _ in range(3)} == {"ImportError: broken"}
    assert trail.read_text() == "x"


def test_an_import_that_was_killed_is_tried_again(site, tmp_path) -> None:
    """The kernel kills for want of memory, and there may be more the next time."""
    trail = tmp_path / "trail"
    once = f"import os, pathlib\ntrail = pathlib.Path({str(trail)!r})\nif not trail.exists():\n    trail.touch()\n"
    site.package("triton_kernels", f"{once}    os.kill(os.getpid(), 9)")
    site.distribution("triton-kernels", "3.6.0")
    with pytest.raises(subprocess.CalledProcessError, match="SIGKILL"):
        versions.import_failure("triton_kernels")
    assert versions.import_failure("triton_kernels") == ""


def test_a_loaded_package_has_been_imported() -> None:
    with mock.patch.dict(sys.modules, {"triton_kernels": ModuleType("triton_kernels")}):
        assert versions.import_failure("triton_kernels") == ""
