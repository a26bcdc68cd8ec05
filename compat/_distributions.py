"""Which installed distribution owns the files of a package, whatever its name.

The same import package is distributed under many names (``triton``, ``pytorch-triton-rocm``, a vendor's own), and metadata
outlives its files: an installer that replaces one provider by another may leave both. What counts is who lists the file that
is imported, with which checksum, and what that file itself says. Metadata is read as bytes: hand-made wheels hold anything.
"""

import base64
import csv
import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlparse

from .releases import parse_release

_VERSION = re.compile(r"""^__version__\s*(?::\s*\w+\s*)?=\s*["']([^"'\n]+)["']""", re.MULTILINE)


# Under which names a package's metadata counts without a list of files: PyTorch's own index, vendors, Windows.
NAMES = {
    "triton": (
        "triton",
        "triton-rocm",
        "pytorch-triton",
        "pytorch-triton-rocm",
        "pytorch-triton-xpu",
        "triton-xpu",
        "triton-windows",
        "triton-ascend",
        "triton-metal",
        "amd-triton",
        "fbtriton",
    ),
    "triton_kernels": ("triton-kernels",),
    "torch": ("torch",),
}


class Claim(NamedTuple):
    """A distribution that may own a package's files.

    lists_files : whether it lists them, rather than lying beside them under a fitting name
    unchanged : whether the file is as it installed it, by the checksum
    installed : when its metadata was written, in nanoseconds
    """

    distribution: str
    version: str
    lists_files: bool
    unchanged: bool
    installed: int


def version_in_source(origin: str) -> str | None:
    """The ``__version__`` that a package's ``__init__``, or a ``version.py`` beside it, sets to a text; None for any other."""
    for file in (Path(origin), Path(origin).with_name("version.py")):
        if file.suffix == ".py" and (found := _VERSION.search(_read(file).decode(errors="replace"))):
            return found[1]
    return None


def owner(claims: list[Claim], own: str | None) -> Claim | None:
    """The claim that is right, None where there is none.

    own : the version that the package's files name; a claim of another release is from another time
    """
    if own is not None and (release := parse_release(own)):
        claims = [claim for claim in claims if parse_release(claim.version) == release]
    return max(
        claims,
        key=lambda claim: (claim.version == own, claim.lists_files, claim.unchanged, claim.installed),
        default=None,
    )


def claims(name: str, origin: str) -> list[Claim]:
    """Who claims the package ``name`` whose ``__init__`` is the file ``origin``."""
    try:
        state = Path(origin).stat()
    except OSError:  # in an archive
        return []
    return list(_claims(name, origin, state.st_mtime_ns, state.st_size))


@lru_cache
def _claims(name: str, origin: str, modified: int, size: int) -> tuple[Claim, ...]:
    """As :func:`claims`, remembered for as long as the file stays the same."""
    file = Path(origin)
    return tuple(claim for info in _metadata_folders(file.parents[1]) if (claim := _claim(info, name, file)))


def _metadata_folders(beside: Path) -> Iterator[Path]:
    """The metadata in the folder that holds the package, and on sys.path what is installed to be edited elsewhere."""
    import sys

    yield from beside.glob("*.dist-info")
    yield from beside.glob("*.egg-info")
    for folder in dict.fromkeys(map(Path, sys.path)):
        if folder != beside:
            yield from (file.parent for file in folder.glob("*.dist-info/direct_url.json"))


def _claim(info: Path, name: str, file: Path) -> Claim | None:
    beside, record = info.parent == file.parents[1], _read(info / "RECORD")
    rows = _rows(record, file.relative_to(info.parent).as_posix()) if beside else []
    lists = bool(rows) or _is_edited_in(info, file)
    headers = _read(info / "METADATA") or _read(info / "PKG-INFO") or _read(info)
    stem, _, version = info.stem.partition("-")
    distribution, version = _header(headers, "Name") or stem, _header(headers, "Version") or version.partition("-py")[0]
    fits = beside and bool(headers) and not record and _fits(distribution, name)
    if not version or not (lists or fits):
        return None
    return Claim(distribution, version, lists, any(_same(file, row) for row in rows), info.stat().st_mtime_ns)


def _rows(record: bytes, path: str) -> list[list[str]]:
    """The rows of a RECORD that list ``path``."""
    if path.encode() not in record:  # most, and they are long
        return []
    return [row for row in csv.reader(record.decode(errors="replace").splitlines()) if row and row[0] == path]


def _fits(distribution: str, package: str) -> bool:
    return re.sub(r"[-_.]+", "-", distribution).lower() in NAMES.get(package, ())


def _is_edited_in(info: Path, file: Path) -> bool:
    """Whether ``info`` is of an editable install of a folder that holds ``file``."""
    try:
        direct = json.loads(_read(info / "direct_url.json") or b"{}")
        editable, folder = direct.get("dir_info", {}).get("editable"), unquote(urlparse(direct.get("url", "")).path)
    except (ValueError, AttributeError, TypeError):  # not what pip writes
        return False
    return bool(editable and folder) and Path(folder) in file.resolve().parents


def _same(file: Path, row: list[str]) -> bool:
    algorithm, _, digest = (row[1] if len(row) > 1 else "").partition("=")
    if algorithm not in hashlib.algorithms_guaranteed or not digest:
        return False
    return base64.urlsafe_b64encode(hashlib.new(algorithm, _read(file)).digest()).rstrip(b"=").decode() == digest


def _header(headers: bytes, name: str) -> str:
    found = re.search(rf"^{name}:[ \t]*(.+?)\s*$".encode(), headers.partition(b"\n\n")[0], re.MULTILINE | re.IGNORECASE)
    return found[1].decode(errors="replace") if found else ""


def _read(file: Path) -> bytes:
    """A file's bytes, none where there is no such file or nobody may read it."""
    try:
        return file.read_bytes()
    except OSError:
        return b""
