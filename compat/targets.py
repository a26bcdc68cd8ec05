"""Compilation targets: their names, and which one a device of this machine means.

What the machine has is found by :mod:`discovery` without starting a driver, and asked anew at each call; once torch has started
the driver, the driver answers for its devices.
"""

import re
import sys
from typing import Any, NamedTuple

from . import _discovery

# Kinds of device that are known and that no variant here is for, by torch's names.
UNSERVED = {"xpu": "an Intel GPU, which is known and not served", "npu": "an Ascend NPU, which is known and not served"}


class Target(NamedTuple):
    """What code is compiled for: Triton's ``GPUTarget`` with a printable form and without Triton.

    backend : "hip", "cuda", or another device type that has no variant here ("cpu", "xpu", "npu", ...)
    arch : "gfx950" for hip, "90" for cuda (compute capability 9.0); "" for the others, and for a GPU that could not be read
    warp_size : lanes of a warp or wave; 1 where there is no GPU, or none that could be read
    """

    backend: str
    arch: str = ""
    warp_size: int = 1

    def __str__(self) -> str:
        return f"{self.backend}:{self.arch}" if self.arch else self.backend

    @property
    def label(self) -> str:
        """The name a reason uses: ``gfx950``, ``sm90``, ``no GPU``."""
        if self.is_gpu and not self.arch:
            return f"a {self.backend} GPU that could not be read"
        if self.backend == "cuda":
            return f"sm{self.arch}"
        return self.arch or UNSERVED.get(self.backend) or ("no GPU" if self.backend == "cpu" else self.backend)

    @property
    def is_gpu(self) -> bool:
        return self.backend in ("hip", "cuda")


CPU = Target("cpu")
KFD = "/sys/class/kfd"  # AMD's compute driver shows its GPUs below this folder


class Discovery(NamedTuple):
    """The visible GPUs of this machine, and what is to be said of them.

    targets : in device order, AMD's before NVIDIA's; ``Target("hip")`` or ``Target("cuda")`` in the place of a GPU that could
        not be read
    notes : why a vendor has no GPU, why one could not be read, what overrides its architecture, whether the order is not the
        driver's
    """

    targets: tuple[Target, ...]
    notes: tuple[str, ...]


def hip(arch: str) -> Target:
    """The target of an AMD architecture; feature suffixes (``gfx950:sramecc+:xnack-``) are dropped."""
    arch = arch.partition(":")[0]
    return Target("hip", arch, 64 if arch.startswith("gfx9") else 32)


def cuda(arch: int | str) -> Target:
    """The target of an NVIDIA compute capability: ``cuda(90)`` for 9.0."""
    return Target("cuda", str(arch), 32)


def base_label(label: str) -> str:
    """The architecture that a variant of it belongs to: sm90a to sm90, sm100f to sm100, gfx950:sramecc+ to gfx950."""
    return re.sub(r"^(sm\d+)[af]$|^(gfx\w+)(?:[:-].*)$", r"\1\2", label)


def parse(text: str) -> Target:
    """The target that ``hip:gfx950``, ``cuda:90`` or ``cpu`` names; bare ``gfx950`` and ``sm90`` serve too, and ``xpu`` and
    ``npu`` for what is known and not served.

    Raises ValueError for anything else, with the nearest known AMD architectures where it looks like one.
    """
    name = text.strip().lower()
    backend, _, arch = name.partition(":")
    if name == "cpu":
        return CPU
    if name in UNSERVED:
        return Target(name)
    if backend.startswith("gfx"):
        backend, arch = "hip", name
    if re.fullmatch(r"sm_?\d{2,3}[af]?", backend) and not arch:
        backend, arch = "cuda", backend
    if backend == "hip" and arch.startswith("gfx"):
        return _known_hip(arch)
    if backend == "cuda" and (number := re.fullmatch(r"(?:sm_?)?(\d{2,3})[af]?", arch)):
        return cuda(number[1])
    raise ValueError(
        f"target: got {text!r}, needs 'hip:gfx950', 'cuda:90' or 'cpu' (a device such as cuda:0 is passed as torch.device)"
    )


def _known_hip(arch: str) -> Target:
    from difflib import get_close_matches

    from rocm_bootstrap import ALL_TARGETS

    target, known = hip(arch), [entry.name for entry in ALL_TARGETS]
    if target.arch not in known:
        nearest = get_close_matches(target.arch, known, n=3, cutoff=0.0)
        raise ValueError(f"target: got {arch!r}, which is no AMD architecture; the nearest are {', '.join(nearest)}")
    return target


def discover() -> Discovery:
    """Find the visible GPUs now. The answer is not remembered: a scheduler may hide devices at import and show them later."""
    amd, nvidia = _discovery.amd(KFD), _discovery.nvidia()
    found = [_target("hip", gpu) for gpu in amd.gpus] + [_target("cuda", gpu) for gpu in nvidia.gpus]
    return Discovery(tuple(found), (*amd.notes, *nvidia.notes, *_discovery.unserved().values()))


def default() -> Target:
    """The target of this machine's first visible GPU that can be read; where there is none, of what is known and not served, or
    the CPU's.

    Which one is first, the driver says once torch has started it.
    """
    if torch := _torch_with_driver():
        return _ask_driver(torch, 0)
    found = next((target for target in discover().targets if target.arch), None)
    return found or next((Target(kind) for kind in _discovery.unserved()), CPU)


def of_device(device: Any) -> Target:
    """The target of a ``torch.device``.

    Once torch has started the driver (as it has where a tensor lives on that device), the driver answers for exactly that
    device, on machines that mix GPUs too; before that the driverless discovery does, as far as it can.
    Raises ValueError, with what is known of the cause, for a device that is not visible or could not be read.
    """
    if device.type != "cuda":
        return CPU if device.type == "meta" else Target(device.type)
    if not (torch := _torch_with_driver()):
        return _of_idle_device(device, sys.modules["torch"].version)
    index = torch.cuda.current_device() if device.index is None else device.index
    try:
        return _ask_driver(torch, index)
    except AssertionError as error:  # torch's word for an index that the driver does not have
        raise ValueError(f"device: got {device}, needs one of the driver's {torch.cuda.device_count()} GPUs") from error


def _torch_with_driver() -> Any | None:
    """torch where it has started the driver; torch is not imported, and may be half imported or a placeholder."""
    torch = sys.modules.get("torch")
    started = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    return torch if started and started() else None


_of_started_device: dict[int, Target] = {}


def _ask_driver(torch: Any, index: int) -> Target:
    """The target of a started driver's GPU ``index``, asked once: it cannot change."""
    if index not in _of_started_device:
        properties = torch.cuda.get_device_properties(index)
        arch = properties.gcnArchName if torch.version.hip else f"{properties.major}{properties.minor}"
        _of_started_device[index] = hip(arch) if torch.version.hip else cuda(arch)
    return _of_started_device[index]


def _of_idle_device(device: Any, built_for: Any) -> Target:
    """``built_for`` is ``torch.version``, which says whose GPUs this torch means by "cuda"."""
    backend, example = ("hip", "hip:gfx950") if built_for.hip else ("cuda", "cuda:90")
    found = _discovery.amd(KFD) if backend == "hip" else _discovery.nvidia()
    index = device.index or 0
    helps = f"name the target, such as {example!r}"
    if built_for.hip or built_for.cuda:
        helps = f"torch.cuda.init() lets the driver answer, or {helps}"
    else:
        helps = f"this torch is built for no GPU: {helps}"
    if index >= len(found.gpus):
        why = "".join(f" ({note})" for note in found.notes)
        raise ValueError(f"device: got {device}, needs a visible GPU: found {len(found.gpus)} for {backend}{why}; {helps}")
    target = _target(backend, found.gpus[index])
    if not target.arch:
        raise ValueError(f"device: got {device}, needs a GPU that can be read ({found.gpus[index].note}); {helps}")
    return target


def _target(backend: str, gpu: _discovery.Gpu) -> Target:
    if not gpu.arch:
        return Target(backend)
    return hip(gpu.arch) if backend == "hip" else cuda(gpu.arch)
