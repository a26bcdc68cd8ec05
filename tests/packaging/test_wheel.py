"""What is installed is what the repository holds, and nothing of it stands in the way of another package."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).parents[2]


def installed_files() -> set[PurePosixPath]:
    """The files that the distribution put into site-packages, without its metadata, scripts and byte code."""
    files = metadata.files("capgate")
    assert files is not None
    return {PurePosixPath(file) for file in files if file.parts[0] == "capgate" and file.suffix != ".pyc"}


def test_every_module_of_the_repository_is_installed_and_nothing_else():
    listing = subprocess.run(
        ["git", "ls-files", "compat", "kernels", "src/capgate/*.*"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip(f"not a git checkout: {listing.stderr.strip()}")
    held = {f"capgate/{name.removeprefix('src/capgate/')}" for name in listing.stdout.split()}
    assert {str(file) for file in installed_files()} == held


def test_the_tests_run_against_the_installed_package():
    import capgate.compat

    assert REPOSITORY not in Path(capgate.compat.__file__).parents or ".nox" in Path(capgate.compat.__file__).parts


def ask(folder: Path, code: str, *options: str) -> str:
    """What Python prints that is started in this folder."""
    command = [sys.executable, *options, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=1200).stdout.strip()


def test_the_packages_are_imported_when_they_are_asked_for(tmp_path: Path):
    code = (
        "import sys, capgate; assert {'compat', 'kernels', '__version__'} <= set(dir(capgate))\n"
        "held = lambda: {name for name in ('capgate.compat', 'capgate.kernels', 'torch', 'triton') if name in sys.modules}\n"
        "assert not held(); capgate.compat.Operation; capgate.kernels\n"
        "print(capgate.__version__, *sorted(held()), getattr(capgate, 'anything', 'no more'))"
    )
    assert ask(tmp_path, code) == f"{metadata.version('capgate')} capgate.compat capgate.kernels no more"


def test_a_folder_of_this_name_beside_the_user_hides_nothing(tmp_path: Path):
    (tmp_path / "capgate" / "compat").mkdir(parents=True)
    (tmp_path / "capgate" / "compat" / "__init__.py").write_text("raise ImportError('not the installed one')")
    assert "installed" in ask(tmp_path, "import capgate.compat; print('the installed one', capgate.compat.__file__)")


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="an archive has the folders, and no links to them")
def test_links_show_editors_what_an_editable_install_has():
    for name in ("compat", "kernels"):
        assert (REPOSITORY / "src" / "capgate" / name).resolve() == REPOSITORY / name


@pytest.mark.parametrize("linked", [True, False], ids=["links", "no-links"])
def test_an_editable_install(tmp_path: Path, linked: bool):
    """A folder on Python's path, which editors and type checkers follow; without the links, a hook that finds the packages."""
    pytest.importorskip("setuptools", minversion="77", reason="building needs it, and no network is asked")
    tree, found = tmp_path / "tree", tmp_path / "found"
    (tree / "src" / "capgate").mkdir(parents=True)
    for name in ("compat", "kernels"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        if linked:
            (tree / "src" / "capgate" / name).symlink_to(f"../../{name}")
    for name in ("src/capgate/__init__.py", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, tree / name)
    command = [sys.executable, "-W", "ignore", "setup.py", "-q", "editable_wheel", "--dist-dir", str(found)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True, text=True)
    with zipfile.ZipFile(next(found.glob("*.whl"))) as wheel:
        wheel.extractall(found)
    (line,) = [line for file in found.glob("*.pth") for line in file.read_text().splitlines()]
    assert (line == str(tree / "src")) == linked
    code = (
        f"import site; site.addsitedir({str(found)!r}); import importlib.util as u; print(u.find_spec('capgate.compat').origin)"
    )
    assert ask(tmp_path, code, "-S") == str(tree / ("src/capgate" if linked else "") / "compat" / "__init__.py")


def test_types_are_marked_as_shipped():
    marks = {"capgate/py.typed", "capgate/compat/py.typed", "capgate/kernels/py.typed"}
    assert marks <= {str(file) for file in installed_files()}


def test_no_hard_dependency_can_replace_a_vendors_torch_or_triton():
    requirements = [Requirement(text) for text in metadata.requires("capgate") or ()]
    hard = {requirement.name for requirement in requirements if requirement.marker is None}
    assert hard == {"fastjsonschema", "packaging", "rocm-bootstrap", "nvidia-ml-py", "rich"}
    assert "torch" in {requirement.name for requirement in requirements}, "the extra [torch] is for those who want it"


def test_one_wheel_serves_every_machine_and_python():
    """Nothing in it is compiled: aarch64 takes the same file."""
    about = metadata.distribution("capgate")
    lines = (about.read_text("WHEEL") or "").splitlines()
    assert {"Root-Is-Purelib: true", "Tag: py3-none-any"} <= set(lines)
    assert about.metadata["Requires-Python"] == ">=3.10"
    assert {file.suffix for file in installed_files()} <= {".py", ".typed"}


def test_the_changelog_begins_with_this_version():
    headings = [line for line in (REPOSITORY / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")]
    assert headings[0] == f"## {metadata.version('capgate')}"


def test_vllm_finds_the_drop_ins_among_its_plugins():
    from capgate.kernels import dropin

    entries = {entry.name: entry for entry in metadata.entry_points(group="vllm.general_plugins")}
    assert entries["capgate"].load() is dropin.activate


@pytest.mark.parametrize("operation", ["fp8_mqa_logits", "fp8_paged_mqa_logits", "select_keys"])
def test_the_operation_is_found_through_its_entry_point(operation):
    entries = {entry.name: entry for entry in metadata.entry_points(group="capgate.operations")}
    assert entries[operation].load().name == operation
