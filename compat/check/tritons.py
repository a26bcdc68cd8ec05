"""Tritons beside the installed one: each in a folder of its own, which a process of a check puts first on its path."""

import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from packaging.version import InvalidVersion, Version

from .. import versions
from .._distributions import version_in_source

INSTALLED = "installed"


class Overlay(NamedTuple):
    """A Triton.

    name : its version, or as it was asked for where its files do not say one
    folder : what comes first on the path; None for the installed one
    build : what tells it from another build of the same version
    """

    name: str
    folder: Path | None
    build: str


def overlay(asked: str, cache: Path, started: Callable[[str], None] = lambda words: None) -> Overlay:
    """The Triton of a version, which is fetched with pip where the cache does not have it; or of a folder; or "installed".

    started : told before pip is

    Raises ValueError for what is none of them, or what pip does not get.
    """
    if asked == INSTALLED:
        found = versions.find("triton")
        if found.text is None:
            raise ValueError(f"triton: got {INSTALLED!r}: found {found.found}; name a version, such as 3.6.0")
        return Overlay(found.text, None, found.source)
    if "/" in asked or asked in (".", ".."):
        folder = Path(asked).resolve()
        source = folder / "triton" / "__init__.py"
        if not source.is_file():
            raise ValueError(f"triton: got {asked!r}, needs a version, or a folder with triton/__init__.py in it")
        return Overlay(version_in_source(str(source)) or asked, folder, str(folder))
    try:
        Version(asked)
    except InvalidVersion as error:
        raise ValueError(f"triton: got {asked!r}, needs a version such as 3.6.0, a folder, or {INSTALLED!r}") from error
    folder = cache / f"cp{sys.version_info[0]}{sys.version_info[1]}" / f"triton-{asked}"
    if not folder.is_dir():
        started(f"fetching Triton {asked}")
        _fetch(asked, folder)
    return Overlay(asked, folder, "pip")


def _fetch(version: str, folder: Path) -> None:
    """Install beside and rename: a folder that is there is whole, whoever else fetches it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(beside), f"triton=={version}"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            cause = next((line for line in said if "ERROR" in line), said[-1] if said else f"status {done.returncode}")
            raise ValueError(f"triton: pip gets no {version}: {cause.strip()}")
        if not folder.is_dir():
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
