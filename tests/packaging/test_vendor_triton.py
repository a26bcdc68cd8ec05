"""The wheel goes into an environment with a vendor's Triton and torch, and touches neither. No network is needed."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

TRITON, TORCH = "3.5.1+rocm7.1.0.gitabc123", "2.9.1+rocm7.1.0.git7d2f"
DEPENDENCIES = {"packaging", "rocm-bootstrap", "nvidia-ml-py", "rich", "fastjsonschema"}


def make_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], metadata_lines: str = "") -> None:
    """A wheel of these files, written by hand; their paths are those in site-packages."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    described = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{metadata_lines}"
    tagged = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members = {**files, f"{info}/METADATA": described.encode(), f"{info}/WHEEL": tagged.encode()}
    record = [f"{path},{_digest(content)},{len(content)}" for path, content in members.items()]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        for path, content in members.items():
            archive.writestr(path, content)


def _digest(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def installed(name: str) -> tuple[dict[str, bytes], str, str]:
    """An installed distribution's files in its own packages, its version, and the lines of its metadata that pip obeys."""
    distribution = metadata.distribution(name)
    packages = {file for file in distribution.files or () if file.parts[0] not in ("..", "__pycache__")}
    files = {
        str(file): Path(file.locate()).read_bytes()
        for file in packages
        if file.suffix != ".pyc" and not file.parts[0].endswith(".dist-info")
    }
    obeyed = [f"Requires-Dist: {requirement}\n" for requirement in distribution.requires or ()]
    obeyed += [f"Provides-Extra: {extra}\n" for extra in distribution.metadata.get_all("Provides-Extra") or ()]
    return files, distribution.version, "".join(obeyed)


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """What pip may choose from: this distribution, its dependencies, and a newer Triton and torch than the vendor's."""
    folder = tmp_path / "links"
    folder.mkdir()
    for name in ("capgate", "packaging"):
        files, version, obeyed = installed(name)
        assert files
        make_wheel(folder, name, version, files, obeyed)
    for name in DEPENDENCIES - {"packaging"}:
        make_wheel(folder, name, "999.0", {})
    for name in ("torch", "triton"):
        make_wheel(folder, name, "999.0", {f"{name}/__init__.py": b"raise ImportError('not the vendor's')"})
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment's interpreter, with a vendor's Triton and torch."""
    folder = tmp_path_factory.mktemp("vendor")
    make_wheel(folder, "triton", TRITON, {"triton/__init__.py": f"__version__ = {TRITON!r}\n".encode()})
    make_wheel(folder, "torch", TORCH, {"torch/__init__.py": f"__version__ = {TORCH!r}\n".encode()}, "Requires-Dist: triton\n")
    made = subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"python -m venv makes no environment with pip here: {made.stdout.strip()}")
    interpreter = folder / "environment" / "bin" / "python"
    pip(interpreter, "install", "--no-deps", *map(str, folder.glob("*.whl")))
    return interpreter


def run(*command: str) -> str:
    """What a command prints, in an environment without this one's packages and pip's settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "CAPGATE_"))}
    done = subprocess.run(command, env={**environment, "PIP_CONFIG_FILE": os.devnull}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pip(python: Path, *arguments: str) -> str:
    return run(str(python), "-m", "pip", "--no-cache-dir", "--disable-pip-version-check", *arguments, "--no-index")


def vendors_files(python: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and times of all files of Triton and torch, their metadata included."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    files = [file for name in ("triton", "torch") for file in site.glob(f"{name}*/**/*") if file.suffix != ".pyc"]
    return {str(file.relative_to(site)): (file.read_bytes(), file.stat().st_mtime_ns) for file in files if file.is_file()}


def test_a_vendors_triton_and_torch_stay_as_they_are(tmp_path: Path, links: Path, python: Path) -> None:
    """Also where pip is asked to upgrade, and to install again, all that the distribution depends on."""
    before = vendors_files(python)
    assert {name.partition("/")[0] for name in before} > {"triton", "torch"}
    report = tmp_path / "report.json"
    eagerly = ("--force-reinstall", "--upgrade", "--upgrade-strategy", "eager")
    pip(python, "install", *eagerly, "--report", str(report), "--find-links", str(links), "capgate")
    assert {item["metadata"]["name"] for item in json.loads(report.read_text())["install"]} == {"capgate", *DEPENDENCIES}
    assert vendors_files(python) == before

    code = "from capgate.compat import versions; print(*[versions.find(name)[:4] for name in ('triton', 'torch')], sep='\\n')"
    found = [repr(("triton", TRITON, (3, 5, 1), "metadata")), repr(("torch", TORCH, (2, 9, 1), "metadata"))]
    assert run(str(python), "-c", code).splitlines() == found


def test_the_extra_asks_for_torch_and_takes_the_vendors(tmp_path: Path, links: Path, python: Path) -> None:
    make_wheel(links, "numpy", "999.0", {})
    before = vendors_files(python)
    pip(python, "install", "--find-links", str(links), "capgate[torch]")
    assert vendors_files(python) == before
