"""What of the installed packages surprises people: a line each, and what to do."""

import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from . import _distributions, versions
from .releases import parse_release
from .thirdparty import Raised, ask

# Distributions that are a Triton, or part of one, under another name: what to know of each.
OTHERS = {
    "fbtriton": "is a fork of Triton in the folder triton: capabilities are asked of it as of any Triton",
    "triton-xpu": "is Intel's Triton in the folder triton: no variant here serves its GPUs; install the Triton that is meant",
    "pytorch-triton-xpu": "is Intel's, of a torch for its GPUs, which no variant here serves: install the torch that is meant",
    "triton-ascend": "is Ascend's, writes over another's folder triton and may name a wrong version: install one alone",
    "triton-metal": "is a Triton for Apple's GPUs in the folder triton: no variant here serves them; install one Triton alone",
    "triton-utlx": "is a plugin that loads itself into Triton and extends it: uninstall it before you blame Triton",
    "triton-utlx-rocm": "is a plugin that loads itself into Triton and extends it: uninstall it before you blame Triton",
    "tokenspeed-triton": "is a Triton of its own in the module tokenspeed_triton: what imports triton does not run with it",
}
KERNELS = ("matmul_ogs.py", "matmul.py")  # of Triton's own triton_kernels: before Triton 3.6, and since


def notes() -> list[str]:
    """A line for each thing that is not as one would expect; nothing is imported."""
    return [words for find in (_owners, _asked_by_torch, _others, _kernels) for words in find()]


def _owners() -> list[str]:
    """Two distributions that own one folder: files are of one of them, and a list of either is wrong."""
    origin = _origin("triton")
    claims = [claim for claim in _distributions.claims("triton", origin) if claim.lists_files] if origin else []
    if len(claims) < 2:
        return []
    owners = " and ".join(sorted(f"{claim.distribution} {claim.version}" for claim in claims))
    names = " ".join(sorted(claim.distribution for claim in claims))
    return [
        f"{owners} own the same folder {Path(origin).parent}, and its files may be of both: pip uninstall {names}, and "
        "then install the one that is meant"
    ]


def _asked_by_torch() -> list[str]:
    """The release of Triton that torch is built for, where another one is installed."""
    from packaging.requirements import InvalidRequirement, Requirement

    torch, triton = versions.find("torch"), versions.find("triton")
    if torch.text is None or not triton.release:
        return []
    lines = ask(lambda: metadata.requires("torch") or [])
    for line in [] if isinstance(lines, Raised) else lines:
        try:
            asked = Requirement(line)
        except InvalidRequirement:
            continue
        if asked.name not in _distributions.NAMES["triton"] or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        wanted = [parse_release(each.version) for each in asked.specifier if each.operator in ("==", "===")]
        if wanted and triton.release not in wanted:
            return [
                f"torch {torch.text} is built for {asked.name} {asked.specifier}, and {triton.text} is installed: "
                "torch.compile may fail, while variants here ask what this Triton can do; install what torch asks for, or "
                "another torch"
            ]
    return []


def _others() -> list[str]:
    found = []
    for name, words in OTHERS.items():
        version = ask(lambda name=name: metadata.version(name))  # type: ignore[misc]
        if not isinstance(version, Raised):
            found.append(f"{name} {version} is installed: it {words}")
    return found


def _kernels() -> list[str]:
    """A triton_kernels that is not Triton's: the name on PyPI is another project's."""
    origin = _origin("triton_kernels")
    if not origin or any(Path(origin).with_name(name).exists() for name in KERNELS):
        return []
    return [
        f"triton_kernels at {Path(origin).parent} has no matmul and is not Triton's own (the name on PyPI is another "
        "project's): uninstall it, and install python/triton_kernels of Triton's repository"
    ]


def _origin(name: str) -> str:
    """The __init__ of a package, which is not imported; "" where there is none."""
    if loaded := getattr(sys.modules.get(name), "__file__", None):
        return str(loaded)
    spec = None if name in sys.modules else ask(lambda: find_spec(name))
    return "" if spec is None or isinstance(spec, Raised) else spec.origin or ""
