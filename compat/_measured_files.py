"""What was measured, in files of the cache.

A file holds one problem of one operation on one stack, so that no two writers ever have to agree: the last one's stands, whole.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import _installation, _probes, _switches, versions
from ._lookup import target_of
from .check.results import cache_folder
from .foreign import LONGEST, POSITIVE, TEXT, Document, map_of, object_with
from .outputs import write_whole

FILE = Document(
    "CAPGATE_MEASURE=1 writes", object_with(stack=map_of(TEXT), operation=TEXT, problem=TEXT, times=map_of(POSITIVE))
)


def remember(operation: str, problem: Any, times: Mapping[str, float]) -> str:
    """Write the microseconds of a problem's variants; returns why that could not be, or "".

    A problem that no other process could name is not written.
    """
    about = _about(operation, problem)
    if about is None:
        return ""
    try:
        file = _file(about)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps({**about, "times": dict(times)}, indent=1).encode())
    except (OSError, RuntimeError) as error:  # pathlib raises that where nobody's home is known
        return str(error)
    return ""


def recall(operation: str, problem: Any) -> tuple[dict[str, float] | None, str]:
    """What was written of a problem on this stack, None for nothing, and why a file that is there is not used, or ""."""
    about = _about(operation, problem)
    if about is None:
        return None, ""
    try:
        file = _file(about)
        found = FILE.read(str(file))
    except FileNotFoundError:
        return None, ""
    except (OSError, ValueError, RuntimeError) as error:
        return None, f"what was remembered cannot be read: {error}"
    if any(found[name] != about[name] for name in about):
        return None, f"{file} is of another stack or problem"
    return found["times"], ""


def _about(operation: str, problem: Any) -> dict[str, Any] | None:
    """What a file is of; None for a problem whose text is too long, or says where it lies in memory.

    Which of several GPUs the problem's device is does not matter: the stack says of which kind.
    """
    text = repr(problem).replace(repr(problem.device), problem.device.type)
    if len(text) > LONGEST or " at 0x" in text:
        return None
    return {"stack": _stack(problem.device), "operation": operation, "problem": text}


def _file(about: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "measured" / f"{about['operation']}-{name[:32]}.json"


def _stack(device: Any) -> dict[str, str]:
    """What a time depends on beside the problem."""
    target, is_gpu, cuda = target_of(device), device.type == "cuda", sys.modules["torch"].cuda
    drivers = _installation.drivers()
    driver = {"cuda": drivers["nvidia"], "hip": drivers["amd"]}.get(target.backend)
    return {
        "capgate": _installation.version(),
        "triton": versions.find("triton").found,
        "torch": versions.find("torch").found,
        "target": str(target),
        "device": cuda.get_device_name(device) if is_gpu else platform.machine(),
        "multiprocessors": str(cuda.get_device_properties(device).multi_processor_count if is_gpu else 0),  # of a partition
        "driver": driver or "none",
        "switches": hashlib.sha256(_switches.current().work.encode()).hexdigest()[:32],
        **_probes.set_to(),
    }
