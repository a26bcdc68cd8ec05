"""conflicts: what of the installed packages surprises people is said in a line, with what to do."""

from typing import Any

import pytest

from capgate.compat import _conflicts as conflicts
from capgate.compat import report, targets

LISTED = "triton/__init__.py,,\n"


def said(*words: str) -> list[str]:
    """The notes that have all of these words."""
    return [note for note in conflicts.notes() if all(word in note for word in words)]


def test_two_distributions_that_own_the_folder(site) -> None:
    site.package("triton", '__version__ = "3.2.0"')
    site.distribution("triton", "3.6.0", record=LISTED)
    site.distribution("triton-ascend", "3.2.0", record=LISTED)
    (note,) = said("own the same folder")
    assert note.startswith(f"triton 3.6.0 and triton-ascend 3.2.0 own the same folder {site.folder / 'triton'}")
    assert note.endswith("pip uninstall triton triton-ascend, and then install the one that is meant")


@pytest.mark.parametrize(
    ("asked", "installed", "is_another"),
    [
        ("triton==3.7.1; platform_system == 'Linux'", "3.6.0", True),
        ("pytorch-triton-rocm (==3.7.1)", "3.6.0+rocm7", True),
        ("triton==3.6.0; platform_system == 'Linux'", "3.6.0+amd.rocm7.2.0.git1a2b", False),
        ("triton==3.7.1; platform_system == 'Windows'", "3.6.0", False),
        ("triton==3.6.*", "3.6.1", False),
        ("triton==3.6", "3.6.0", False),
        ("triton==3.6.0+git1a2b3c", "3.6.0", False),
        ("triton==3.7.1; extra == 'more'", "3.6.0", False),
        ("triton>=3", "3.6.0", False),
        ("tritonclient==2.0", "3.6.0", False),
        ("no requirement at all", "3.6.0", False),
    ],
)
def test_a_torch_that_is_built_for_another_triton(site, asked: str, installed: str, is_another: bool) -> None:
    site.package("triton")
    site.distribution("triton", installed, record=LISTED)
    site.package("torch")
    info = site.distribution("torch", "2.14.0", record="torch/__init__.py,,\n")
    with (info / "METADATA").open("a") as file:
        file.write(f"Requires-Dist: {asked}\n")
    notes = said("torch 2.14.0 is built for")
    assert len(notes) == is_another
    if notes:
        assert f"==3.7.1, and {installed} is installed" in notes[0]


@pytest.mark.parametrize("name", conflicts.OTHERS)
def test_tritons_under_other_names(site, name: str) -> None:
    site.distribution(name, "3.8.0.post16", record="")
    (note,) = said(f"{name} 3.8.0.post16 is installed")
    assert ": " in note.partition("it ")[2], "what it is, and what to do or know"


def test_a_triton_kernels_of_another_project(site) -> None:
    site.package("triton_kernels")
    (note,) = said("triton_kernels at", "is not Triton's own")
    assert str(site.folder / "triton_kernels") in note
    (site.folder / "triton_kernels" / "matmul_ogs.py").touch()
    assert said("triton_kernels at") == []


def test_nothing_is_said_of_what_is_as_it_should_be(site) -> None:
    site.package("triton")
    site.distribution("triton", "3.6.0", record=LISTED)
    site.package("torch")
    site.distribution("torch", "2.13.0+cpu", record="torch/__init__.py,,\n")
    assert conflicts.notes() == []


def test_the_report_has_them(site) -> None:
    site.distribution("tokenspeed-triton", "3.9.10", record="")
    found: dict[str, Any] = report.collect(targets.CPU)
    assert [note for note in found["notes"] if note.startswith("tokenspeed-triton 3.9.10")]
