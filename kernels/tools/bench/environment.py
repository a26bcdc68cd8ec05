"""The stack that a result belongs to: versions, the GPU, the driver."""

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from capgate import compat
from capgate.compat import versions

from ...common.hardware import multiprocessors


def describe(device: torch.device) -> dict[str, Any]:
    """Everything that a result's times depend on, as JSON types."""
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    serial = getattr(gpu, "uuid", None)
    return {
        "capgate": _installed_version("capgate"),
        **{name: versions.find(name).text for name in ("triton", "triton_kernels", "torch")},
        "device": gpu.name if gpu else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "serial": str(serial) if serial else None,
        "target": str(compat.capabilities(device).target),
        "multiprocessors": multiprocessors(device),
        "runtime": torch.version.cuda or torch.version.hip,
        "driver": _driver(),
        "interpreter": bool(compat.capabilities(device).interpreter),
        "python": platform.python_version(),
    }


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from a source tree
        return None


def _driver() -> str | None:
    """The version of NVIDIA's driver, or of the kernel with AMD's module; None without either."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        amd = Path("/sys/module/amdgpu/version")
        return amd.read_text().strip() if amd.exists() else None
