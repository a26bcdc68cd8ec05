"""Compilation targets, and the GPUs of this machine found without starting HIP or CUDA.

AMD GPUs are read from sysfs by rocm-bootstrap, NVIDIA GPUs through NVML (nvidia-ml-py); neither creates a context, so a
process may fork afterwards and its child can still use the GPU. What the *_VISIBLE_DEVICES variables hide is not listed.
"""

import os
import re
import sys
from contextlib import suppress
from typing import Any, NamedTuple


class Target(NamedTuple):
    """What code is compiled for: Triton's ``GPUTarget`` with a printable form and without Triton.

    backend : "hip", "cuda", or another device type that has no branch here ("cpu", "xpu", ...)
    arch : "gfx950" for hip, "90" for cuda (compute capability 9.0), "" for the others
    warp_size : lanes of a warp or wave; 1 where there is no GPU
    """

    backend: str
    arch: str = ""
    warp_size: int = 1

    def __str__(self) -> str:
        return f"{self.backend}:{self.arch}" if self.arch else self.backend

    @property
    def label(self) -> str:
        """The name a reason uses: ``gfx950``, ``sm90``, ``no GPU``."""
        if self.backend == "cuda":
            return f"sm{self.arch}"
        return self.arch or ("no GPU" if self.backend == "cpu" else self.backend)

    @property
    def is_gpu(self) -> bool:
        return self.backend in ("hip", "cuda")


CPU = Target("cpu")
KFD = "/sys/class/kfd"  # AMD's compute driver shows its GPUs below this folder


class Discovery(NamedTuple):
    """The visible GPUs in device order, and for each vendor that has none a note that says why."""

    targets: tuple[Target, ...]
    notes: tuple[str, ...]


def hip(arch: str) -> Target:
    """The target of an AMD architecture; feature suffixes (``gfx950:sramecc+:xnack-``) are dropped."""
    arch = arch.partition(":")[0]
    return Target("hip", arch, 64 if arch.startswith("gfx9") else 32)


def cuda(arch: int | str) -> Target:
    """The target of an NVIDIA compute capability: ``cuda(90)`` for 9.0."""
    return Target("cuda", str(arch), 32)


def parse(text: str) -> Target:
    """The target that ``hip:gfx950``, ``cuda:90`` or ``cpu`` names; bare ``gfx950`` and ``sm90`` serve too.

    Raises ValueError for anything else, with the nearest known AMD architectures where it looks like one.
    """
    name = text.strip().lower()
    backend, _, arch = name.partition(":")
    if name == "cpu":
        return CPU
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
    amd, amd_note = _amd()
    nvidia, nvidia_note = _nvidia()
    return Discovery((*amd, *nvidia), tuple(note for note in (amd_note, nvidia_note) if note))


def default() -> Target:
    """The first visible GPU's target, or the CPU's."""
    return next(iter(discover().targets), CPU)


_of_started_device: dict[int, Target] = {}


def of_device(device: Any) -> Target:
    """The target of a ``torch.device``.

    Once torch has started the driver (as it has where a tensor lives on that device), the driver answers for exactly that
    device, on machines that mix GPUs too; before that the driverless discovery does. Raises ValueError for a device that is
    not visible.
    """
    if device.type != "cuda":
        return CPU if device.type == "meta" else Target(device.type)
    torch = sys.modules["torch"]
    if not torch.cuda.is_initialized():
        return _of_idle_device(device, "hip" if torch.version.hip else "cuda")
    index = torch.cuda.current_device() if device.index is None else device.index
    if index not in _of_started_device:
        properties = torch.cuda.get_device_properties(index)
        arch = properties.gcnArchName if torch.version.hip else f"{properties.major}{properties.minor}"
        _of_started_device[index] = hip(arch) if torch.version.hip else cuda(arch)
    return _of_started_device[index]


def _of_idle_device(device: Any, backend: str) -> Target:
    found = [target for target in discover().targets if target.backend == backend]
    index = device.index or 0
    if index >= len(found):
        raise ValueError(f"device: got {device}, needs a visible GPU: found {len(found)} for {backend}")
    return found[index]


def _amd() -> tuple[list[Target], str | None]:
    if sys.platform == "linux" and not os.path.isdir(KFD) and not os.environ.get("ROCM_BOOTSTRAP_FORCE_GFX_ARCH"):
        return [], f"AMD: no kernel driver ({KFD} is absent)"  # rocm-bootstrap would go on and run clinfo
    from rocm_bootstrap import detect_gpus

    try:
        gpus = sorted(detect_gpus(), key=lambda gpu: gpu.node_id)
    except (OSError, ValueError) as error:  # a container that hides a node; an architecture newer than rocm-bootstrap
        return [], f"AMD: the kernel's topology could not be read: {error}"
    if not gpus:
        return [], "AMD: no GPU in the kernel's topology"
    # ROCR filters first and HIP counts in what is left; HIP reads CUDA's variable when its own is not set.
    hip_variable = "HIP_VISIBLE_DEVICES" if "HIP_VISIBLE_DEVICES" in os.environ else "CUDA_VISIBLE_DEVICES"
    targets = [hip(gpu.target.name) for gpu in gpus]
    for variable in ("ROCR_VISIBLE_DEVICES", hip_variable):
        # sysfs gives no UUIDs, but where all GPUs are alike it does not matter which one an entry means.
        alike = targets[0] if len(set(targets)) == 1 else None
        targets = _visible(targets, variable, lambda entry, alike=alike: alike if entry.startswith("GPU-") else None)
        if not targets:
            return [], f"AMD: {len(gpus)} found, all hidden by {variable}={os.environ[variable]!r}"
    return targets, None


def _nvidia() -> tuple[list[Target], str | None]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return [], f"NVIDIA: {error}"
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        by_uuid = {_text(pynvml.nvmlDeviceGetUUID(handle)): _capability(handle) for handle in handles}
        targets = [_capability(handle) for handle in handles]

        def named(entry: str) -> Target | None:
            if entry.startswith("MIG-"):
                with suppress(pynvml.NVMLError):  # no such instance: it ends the list, as any entry that names no device
                    return _capability(pynvml.nvmlDeviceGetHandleByUUID(entry))
                return None
            return next((target for uuid, target in by_uuid.items() if uuid.startswith(entry)), None)

        visible = _visible(targets, "CUDA_VISIBLE_DEVICES", named)
    except pynvml.NVMLError as error:
        return [], f"NVIDIA: NVML could not describe the GPUs: {error}"
    finally:
        pynvml.nvmlShutdown()
    if targets and not visible:
        return [], f"NVIDIA: {len(targets)} found, all hidden by CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']!r}"
    return visible, None if visible else "NVIDIA: the driver lists no GPU"


def _capability(handle: Any) -> Target:
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return cuda(f"{major}{minor}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _visible(targets: list[Target], variable: str, named: Any) -> list[Target]:
    """What ``variable`` leaves of ``targets``: as in CUDA and HIP, the first entry that names no device ends the list."""
    setting = os.environ.get(variable)
    if setting is None:
        return targets
    visible = []
    for entry in (part.strip() for part in setting.split(",")):
        if re.fullmatch(r"\d+", entry):
            target = targets[int(entry)] if int(entry) < len(targets) else None
        else:
            target = named(entry) if entry else None
        if target is None:
            break
        visible.append(target)
    return visible
