"""The GPUs of this machine, each read by itself, without starting HIP or CUDA and without starting another program.

AMD GPUs are read from sysfs, NVIDIA GPUs through NVML; neither creates a context, so a process may fork afterwards and its
child can still use the GPU. A GPU that cannot be read keeps its index, so that those of the later ones are the runtime's.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, NamedTuple

from . import _visibility

DRM = "/sys/class/drm"  # the kernel's graphics devices, Intel's among them
INTEL, INTEL_DRIVERS = "0x8086", ("xe", "i915")
DEV = "/dev"  # where Ascend's driver has davinci0, davinci1, ...
DRI = "/dev/dri"  # where the kernel puts the render nodes through which ROCr opens its GPUs


class Gpu(NamedTuple):
    """One GPU as its driver describes it.

    arch : "gfx950", or "90" for compute capability 9.0; "" where it could not be read
    uuid : "GPU-..."; "" for a GPU that shows none
    note : what is to be said of this one, such as why its architecture could not be read
    """

    arch: str
    uuid: str = ""
    note: str = ""


class Found(NamedTuple):
    """One vendor's visible GPUs in the runtime's order, as far as it is known, and what is to be said of all of them."""

    gpus: tuple[Gpu, ...]
    notes: tuple[str, ...]


def amd(kfd: str) -> Found:
    """The AMD GPUs that HIP would list. ``kfd`` is the folder of AMD's compute driver, without which there is none."""
    forced = os.environ.get("ROCM_BOOTSTRAP_FORCE_GFX_ARCH", "")
    if os.environ.get("ROCM_BOOTSTRAP_DISABLE_DETECTION") == "1":
        return Found((), ("AMD: ROCM_BOOTSTRAP_DISABLE_DETECTION=1 turns the search off",))
    if not forced and not os.path.isdir(kfd):
        return Found((), (f"AMD: no kernel driver ({kfd} is absent)",))
    try:
        gpus, notes = (_forced(forced), []) if forced else _kfd_gpus()
    except OSError as error:  # the folder cannot be listed
        return Found((), (f"AMD: the kernel's topology could not be read: {error}",))
    except ValueError as error:  # an override that ROCr does not take
        return Found((), (f"AMD: {error}",))
    notes += [gpu.note for gpu in gpus if gpu.note]
    if not gpus:
        return Found((), (*notes, "AMD: no GPU in the kernel's topology"))
    visible = gpus
    if (setting := os.environ.get("ROCR_VISIBLE_DEVICES")) is not None:
        visible = _visible(visible, _visibility.rocr, setting)
        if not visible:
            return Found((), (*notes, f"AMD: {len(gpus)} found, all hidden by ROCR_VISIBLE_DEVICES={setting!r}"))
    if read := _visibility.hip_setting(os.environ):
        variable, setting = read
        visible = _visible(visible, _visibility.hip, setting)
        if not visible:
            hidden = f"{variable}={os.environ[variable]!r}"
            return Found((), (*notes, f"AMD: {len(gpus)} found, all hidden by {hidden}"))
    return Found(tuple(visible), tuple(notes))


def unserved() -> dict[str, str]:
    """The kinds of device that are known here and that no variant serves: torch's name of the kind, and a note."""
    found = {}
    if npus := [name for name in _listed(DEV) if re.fullmatch(r"davinci\d+", name)]:
        found["npu"] = (
            f"Ascend: {len(npus)} found, known and not served: no variant here is for them; their Triton is triton-ascend"
        )
    gpus = [name for name in _listed(DRM) if re.fullmatch(r"card\d+", name) and _is_intel(f"{DRM}/{name}/device")]
    if gpus:
        words = "known and not served: no variant here is for them; their Triton is triton-xpu, or torch's pytorch-triton-xpu"
        found["xpu"] = f"Intel: {len(gpus)} found, {words}"
    return found


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_intel(device: str) -> bool:
    """Whether a device of the kernel's is a GPU of Intel's that has a driver."""
    try:
        with open(f"{device}/vendor") as file:
            vendor = file.read().strip()
        driver = os.path.basename(os.readlink(f"{device}/driver"))
    except OSError:
        return False
    return vendor == INTEL and driver in INTEL_DRIVERS


def nvidia() -> Found:
    """The NVIDIA GPUs that CUDA would list, in NVML's order, which is the bus's."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Found((), (f"NVIDIA: {error}",))
    try:
        gpus = [_nvml_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
        setting = os.environ.get("CUDA_VISIBLE_DEVICES")
        if setting is None:
            visible = gpus
        elif setting.startswith("MIG-"):
            visible = _mig(setting, gpus)
        else:
            visible = _visible(gpus, _visibility.cuda, setting)
    except pynvml.NVMLError as error:
        return Found((), (f"NVIDIA: NVML could not list the GPUs: {error}",))
    finally:
        with suppress(pynvml.NVMLError):  # it has told all it can
            pynvml.nvmlShutdown()
    notes = [gpu.note for gpu in gpus if gpu.note]
    if not gpus:
        notes.append("NVIDIA: the driver lists no GPU")
    elif not visible:
        notes.append(f"NVIDIA: {len(gpus)} found, all hidden by CUDA_VISIBLE_DEVICES={setting!r}")
    elif not _in_bus_order(setting, gpus):
        kinds = ", ".join(dict.fromkeys(f"sm{gpu.arch}" if gpu.arch else "one that could not be read" for gpu in gpus))
        notes.append(
            f"NVIDIA: unlike GPUs ({kinds}) in the order of the bus; the driver's order, fastest first, is known once it has "
            "started, or with CUDA_DEVICE_ORDER=PCI_BUS_ID now"
        )
    return Found(tuple(visible), tuple(notes))


def _visible(gpus: Sequence[Gpu], read: Callable[[str, Sequence[str]], list[int]], setting: str) -> list[Gpu]:
    return [gpus[position] for position in read(setting, [gpu.uuid for gpu in gpus])]


# AMD


def _forced(archs: str) -> list[Gpu]:
    """The GPUs that ROCM_BOOTSTRAP_FORCE_GFX_ARCH makes up, which have no UUIDs."""
    names = [name for name in map(str.strip, archs.split(",")) if name]
    return [_named(name, f"AMD: GPU {index} of ROCM_BOOTSTRAP_FORCE_GFX_ARCH") for index, name in enumerate(names)]


def _named(name: str, words: str, uuid: str = "") -> Gpu:
    """A GPU of an architecture, which rocm-bootstrap has to know: a guess at its wave size would be a wrong target."""
    from rocm_bootstrap import lookup_target

    try:
        return Gpu(lookup_target(name).name, uuid)
    except ValueError:
        return Gpu("", uuid, f"{words} could not be read: rocm-bootstrap knows no {name}")


def _kfd_gpus() -> tuple[list[Gpu], list[str]]:
    """The GPUs of the kernel's topology in ROCr's order, and a note for each node that ROCr passes over.

    Raises OSError where the topology cannot be listed, ValueError for an override for which ROCr finds no GPU at all.
    """
    from rocm_bootstrap import _platform  # node by node, which its detect_gpus does not do: one error there loses every GPU

    gpus: list[Gpu] = []
    notes: list[str] = []
    kept = 0  # libhsakmt numbers the nodes that it keeps, and means this number in HSA_OVERRIDE_GFX_VERSION_<n>
    for node in sorted(_platform.list_kfd_nodes(), key=lambda node: int(node.name)):
        try:
            properties = _properties(_platform.read_kfd_properties(node))
        except (PermissionError, FileNotFoundError) as error:  # a container was not given it; it has gone
            # What may not be read has no index: libhsakmt, topology.c, topology_sysfs_check_node_supported, as below.
            notes.append(f"AMD: node {node.name} is passed over: {error}")
            continue
        except (OSError, ValueError) as error:
            gpus.append(Gpu("", "", f"AMD: GPU {len(gpus)} (node {node.name}) could not be read: {error}"))
            kept += 1
            continue
        is_gpu = properties.get("simd_count", 0) > 0
        render_node = f"{DRI}/renderD{properties.get('drm_render_minor', 0)}"
        if is_gpu and "drm_render_minor" in properties and os.path.isdir(DRI) and not os.path.exists(render_node):
            notes.append(f"AMD: node {node.name} is passed over: {render_node} is absent")
            continue
        if is_gpu:
            gpus.append(_kfd_gpu(properties, kept, f"AMD: GPU {len(gpus)} (node {node.name})"))
        kept += 1
    return gpus, notes


def _properties(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and re.fullmatch(r"-?[0-9]+", pair[1])}


def _kfd_gpu(properties: Mapping[str, int], number: int, words: str) -> Gpu:
    # ROCr writes a UUID so in amd_gpu_agent.cpp; 0 stands for none.
    uuid = f"GPU-{properties['unique_id']:016x}" if properties.get("unique_id") else ""
    version = properties.get("gfx_target_version", 0)
    if not version:
        return Gpu("", uuid, f"{words} could not be read: this kernel does not say its architecture")
    own = _gfx(version // 10000, version // 100 % 100, version % 100)
    taken, setting = _override(number)
    if not taken:
        return _named(own, words, uuid)
    gpu = _named(taken, words, uuid)
    note = f"{words} is a {own}, which the runtime takes for a {taken}: {setting}"
    return gpu._replace(note=f"{note}; {gpu.note}" if gpu.note else note)


def _override(number: int) -> tuple[str, str]:
    """The architecture that the environment gives libhsakmt's node ``number``, "" for none, and the setting that does.

    Raises ValueError for a setting with which ROCr finds no GPU. Source: libhsakmt, topology.c, topology_sysfs_get_node_props.
    """
    names = (f"HSA_OVERRIDE_GFX_VERSION_{number}", "HSA_OVERRIDE_GFX_VERSION")
    name = next((name for name in names if name in os.environ), None)
    if name is None:
        return "", ""
    setting = f"{name}={os.environ[name]!r}"
    version = re.fullmatch(r"\s*([0-9]+)\.([0-9]+)\.([0-9]+)", os.environ[name])
    major, minor, stepping = map(int, version.groups()) if version else (64, 0, 0)
    if major > 63 or minor > 255 or stepping > 255:
        raise ValueError(f"{setting} is no major.minor.stepping: ROCr finds no GPU with it")
    return _gfx(major, minor, stepping) if major or minor or stepping else "", setting


def _gfx(major: int, minor: int, stepping: int) -> str:
    return f"gfx{major}{minor:x}{stepping:x}"  # LLVM's processor names: gfx90a is 9.0.10


# NVIDIA


def _nvml_gpu(index: int) -> Gpu:
    """GPU ``index`` of NVML, with a note for what the driver refuses to say of it."""
    import pynvml

    arch = uuid = note = ""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        try:
            shown = pynvml.nvmlDeviceGetUUID(handle)
            uuid = shown.decode() if isinstance(shown, bytes) else shown
        except pynvml.NVMLError as error:
            note = f"NVIDIA: GPU {index} shows no UUID: {error}"
        arch = _capability(handle)
    except pynvml.NVMLError as error:
        note = f"NVIDIA: GPU {index} could not be read: {error}"
    return Gpu(arch, uuid, note)


def _capability(handle: Any) -> str:
    import pynvml

    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return f"{major}{minor}"


def _mig(setting: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """The MIG instance that CUDA_VISIBLE_DEVICES names; CUDA lists one at most (CUDA programming guide, the same section)."""
    import pynvml

    entries = list(takewhile(lambda entry: entry.startswith("MIG-"), setting.split(",")))
    entry = entries[0]
    if len(set(entries)) < len(entries):
        return []  # torch/cuda/__init__.py, _parse_visible_devices
    if older := re.fullmatch(r"MIG-(GPU-[^/]+)/[0-9]+/[0-9]+", entry):  # MIG-<GPU-UUID>/<GPU instance>/<compute instance>
        return [gpu for gpu in gpus if gpu.uuid == older[1]]
    with suppress(pynvml.NVMLError):  # no such instance
        return [Gpu(_capability(pynvml.nvmlDeviceGetHandleByUUID(entry)), entry)]
    return []


def _in_bus_order(setting: str | None, gpus: Sequence[Gpu]) -> bool:
    """Whether an index means the same GPU here and for the driver.

    CUDA programming guide, CUDA_DEVICE_ORDER: FASTEST_FIRST is the default, by a heuristic that is the driver's own.
    """
    by_uuid = setting is not None and setting.startswith(("GPU-", "MIG-"))
    return by_uuid or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({gpu.arch for gpu in gpus}) <= 1
