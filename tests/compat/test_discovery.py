"""discovery: each GPU of a machine read by itself, in the runtime's order, with a note for what is not sure."""

import errno
import subprocess
from pathlib import Path
from typing import Any

import pytest

from capgate import compat
from capgate.compat import _discovery as discovery
from capgate.compat import targets
from capgate.compat.targets import CPU, Target, cuda, hip

GFX942, GFX950 = hip("gfx942"), hip("gfx950")
SM80, SM90, SM100 = cuda(80), cuda(90), cuda(100)
UNREAD_AMD, UNREAD_NVIDIA = Target("hip"), Target("cuda")

NVIDIA = {"GPU-aaaa1111": (8, 0), "GPU-bbbb2222": (9, 0), "GPU-cccc3333": (10, 0)}
ALIKE = {"GPU-aaaa1111": (9, 0), "GPU-bbbb2222": (9, 0), "GPU-cccc3333": (9, 0)}

NOT_PERMITTED = PermissionError(errno.EPERM, "Operation not permitted")


# AMD


def test_amd_gpus_are_in_the_kernel_s_order(machine) -> None:
    """Nodes 2 and 10: numbers, not text; and node 0 is a CPU."""
    machine.kfd({0: 0, 10: 90500, 2: 90402})
    assert targets.discover().targets == (GFX942, GFX950)


@pytest.mark.parametrize("nodes", [{}, {0: 0}, {0: 0, 1: 0}], ids=["empty", "a CPU", "CPUs"])
def test_a_topology_without_gpus_gives_a_note_and_starts_no_program(machine, monkeypatch, nodes: dict[int, int]) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **keywords: pytest.fail(f"starts {arguments}"))
    machine.kfd(nodes)
    Path(targets.KFD).mkdir(exist_ok=True)
    found = targets.discover()
    assert found.targets == ()
    assert found.notes[0] == "AMD: no GPU in the kernel's topology"


@pytest.mark.parametrize(
    ("nodes", "refused", "expected", "note"),
    [
        pytest.param(
            {0: 0, 1: 90402, 2: 90500},
            {1: NOT_PERMITTED},
            (GFX950,),
            "AMD: node 1 is passed over: [Errno 1] Operation not permitted",
            id="a container was not given it: ROCr does not count it",
        ),
        pytest.param(
            {0: 0, 1: 90402, 2: 90500},
            {0: NOT_PERMITTED},
            (GFX942, GFX950),
            "AMD: node 0 is passed over",
            id="a CPU's node is refused",
        ),
        pytest.param({1: 90402, 2: 90500}, {1: FileNotFoundError("gone")}, (GFX950,), "node 1 is passed over: gone", id="gone"),
        pytest.param(
            {0: 0, 1: 90402, 2: 90500},
            {1: OSError(errno.EIO, "Input/output error")},
            (UNREAD_AMD, GFX950),
            "AMD: GPU 0 (node 1) could not be read: [Errno 5] Input/output error",
            id="an error of the device keeps its index",
        ),
        pytest.param(
            {0: 0, 1: 90402, 2: 19999999, 3: 90500},
            {},
            (GFX942, UNREAD_AMD, GFX950),
            "AMD: GPU 1 (node 2) could not be read: rocm-bootstrap knows no gfx1999",
            id="an architecture that nobody knows",
        ),
        pytest.param(
            {1: 90402, 2: 130700, 3: 90500},
            {},
            (GFX942, UNREAD_AMD, GFX950),
            "rocm-bootstrap knows no gfx1370",
            id="newer than rocm-bootstrap",
        ),
        pytest.param(
            {1: 90402}, {1: OSError("lost")}, (UNREAD_AMD,), "AMD: GPU 0 (node 1) could not be read: lost", id="alone"
        ),
    ],
)
def test_an_amd_node_that_cannot_be_read_takes_no_other_with_it(
    machine, nodes: dict[int, int], refused: Any, expected: tuple[Target, ...], note: str
) -> None:
    machine.kfd(nodes, refused=refused)
    found = targets.discover()
    assert found.targets == expected
    assert note in found.notes[0]
    assert targets.default() == next((target for target in expected if target.arch), CPU)


def test_a_gpu_whose_architecture_the_kernel_does_not_say(machine) -> None:
    machine.kfd({0: 0, 1: 90500}, properties={0: {"simd_count": 256}})
    found = targets.discover()
    assert found.targets == (UNREAD_AMD, GFX950)
    assert found.notes[0] == "AMD: GPU 0 (node 0) could not be read: this kernel does not say its architecture"


def test_a_topology_that_cannot_be_listed(machine, monkeypatch) -> None:
    from rocm_bootstrap import _platform

    def list_kfd_nodes() -> list[Path]:
        raise NOT_PERMITTED

    machine.kfd({1: 90500})
    monkeypatch.setattr(_platform, "list_kfd_nodes", list_kfd_nodes)
    assert targets.discover().notes[0].startswith("AMD: the kernel's topology could not be read: [Errno 1]")


def test_a_gpu_without_its_render_node_is_passed_over(machine) -> None:
    """Rootless containers show every GPU in sysfs and give the render nodes of some."""
    machine.kfd({0: 0, 1: 90402, 2: 90500}, properties={1: {"drm_render_minor": 128}, 2: {"drm_render_minor": 129}})
    assert targets.discover().targets == (GFX942, GFX950), "without render nodes to look at"
    folder = Path(discovery.DRI)
    folder.mkdir()
    (folder / "renderD129").touch()
    found = targets.discover()
    assert found.targets == (GFX950,)
    assert found.notes[0] == f"AMD: node 1 is passed over: {folder}/renderD128 is absent"


def test_an_unread_gpu_keeps_the_indices_of_the_variables(machine, monkeypatch) -> None:
    machine.kfd({1: 19999999, 2: 90402, 3: 90500})
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "2,0,1")
    assert targets.discover().targets == (GFX950, UNREAD_AMD, GFX942)
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "2")
    assert targets.discover().targets == (GFX942,)


@pytest.mark.parametrize(
    ("variables", "expected", "words"),
    [
        pytest.param(
            {"HSA_OVERRIDE_GFX_VERSION": "10.3.0"},
            ("gfx1030", "gfx1030"),
            "GPU 0 (node 1) is a gfx1031, which the runtime takes for a gfx1030: HSA_OVERRIDE_GFX_VERSION='10.3.0'",
            id="every GPU",
        ),
        pytest.param(
            {"HSA_OVERRIDE_GFX_VERSION": "9.0.10"}, ("gfx90a", "gfx90a"), "takes for a gfx90a", id="hexadecimal stepping"
        ),
        pytest.param(
            {"HSA_OVERRIDE_GFX_VERSION_2": "11.0.0"}, ("gfx1031", "gfx1100"), "GPU 1 (node 2) is a gfx1103", id="one node"
        ),
        pytest.param(
            {"HSA_OVERRIDE_GFX_VERSION": "10.3.0", "HSA_OVERRIDE_GFX_VERSION_2": "11.0.0"},
            ("gfx1030", "gfx1100"),
            "HSA_OVERRIDE_GFX_VERSION='10.3.0'",
            id="a node's own goes first",
        ),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": "0.0.0"}, ("gfx1031", "gfx1103"), "", id="nothing"),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": "60.1.1"}, ("", ""), "knows no gfx6011", id="an architecture nobody knows"),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": "gfx1030"}, (), "'gfx1030' is no major.minor.stepping", id="a name"),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": "10.3"}, (), "'10.3' is no major.minor.stepping", id="too short"),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": "10.3.0 "}, (), "is no major.minor.stepping", id="something after it"),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": "64.0.0"}, (), "is no major.minor.stepping", id="too large"),
        pytest.param({"HSA_OVERRIDE_GFX_VERSION": ""}, (), "is no major.minor.stepping", id="empty"),
    ],
)
def test_an_override_is_the_target_and_is_said(
    machine, monkeypatch, variables: dict[str, str], expected: tuple[str, ...], words: str
) -> None:
    """libhsakmt (topology.c) hands the override to ROCr as the GPU's ISA, and fails for one that it cannot read."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    machine.kfd({0: 0, 1: 100301, 2: 110003})
    found = targets.discover()
    assert found.targets == tuple(hip(arch) if arch else UNREAD_AMD for arch in expected)
    assert words in found.notes[0]


def test_an_override_counts_the_nodes_that_the_runtime_keeps(machine, monkeypatch) -> None:
    machine.kfd({0: 0, 1: 90402, 2: 100301}, refused={1: NOT_PERMITTED})
    monkeypatch.setenv("HSA_OVERRIDE_GFX_VERSION_1", "10.3.0")
    assert targets.discover().targets == (hip("gfx1030"),)


def test_made_up_amd_gpus(machine, monkeypatch) -> None:
    machine.amd("gfx942", " gfx1 ", "", "gfx950")
    found = targets.discover()
    assert found.targets == (GFX942, UNREAD_AMD, GFX950)
    assert found.notes[0].startswith("AMD: GPU 1 of ROCM_BOOTSTRAP_FORCE_GFX_ARCH could not be read")
    monkeypatch.setenv("ROCM_BOOTSTRAP_DISABLE_DETECTION", "1")
    assert targets.discover().targets == ()
    assert "ROCM_BOOTSTRAP_DISABLE_DETECTION=1" in targets.discover().notes[0]


# NVIDIA


@pytest.mark.parametrize("function", ["nvmlDeviceGetHandleByIndex", "nvmlDeviceGetCudaComputeCapability"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_nvidia_gpu_keeps_its_index(machine, monkeypatch, function: str, lost: int) -> None:
    nvml = machine.nvidia(NVIDIA, fails_in={(function, lost): "GPU is lost"})
    expected = [SM80, SM90, SM100]
    expected[lost] = UNREAD_NVIDIA
    found = targets.discover()
    assert found.targets == tuple(expected)
    assert f"NVIDIA: GPU {lost} could not be read: GPU is lost" in found.notes
    assert targets.default() == (SM90 if lost == 0 else SM80)
    for index, target in enumerate(expected):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", str(index))
        assert targets.discover().targets == (target,)
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown")


def test_a_lost_nvidia_gpu_that_still_shows_its_uuid_keeps_its_place_among_uuids(machine, monkeypatch) -> None:
    machine.nvidia(NVIDIA, fails_in={("nvmlDeviceGetCudaComputeCapability", 1): "GPU is lost"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-cccc,GPU-bbbb,GPU-aaaa")
    assert targets.discover().targets == (SM100, UNREAD_NVIDIA, SM80)


def test_nvidia_gpus_without_uuids_are_known_by_index(machine, monkeypatch) -> None:
    machine.nvidia(NVIDIA, fails_in={"nvmlDeviceGetUUID": "Not Supported"})
    assert targets.discover().targets == (SM80, SM90, SM100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert targets.discover().targets == (SM90,)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb2222")
    found = targets.discover()
    assert found.targets == ()
    assert "NVIDIA: GPU 1 shows no UUID: Not Supported" in found.notes


@pytest.mark.parametrize(
    ("gpus", "failing", "note", "shutdowns"),
    [
        pytest.param({}, {"nvmlInit": "Driver Not Loaded"}, "NVIDIA: Driver Not Loaded", 0, id="no driver"),
        pytest.param({}, {}, "NVIDIA: the driver lists no GPU", 1, id="no GPU"),
        pytest.param(
            NVIDIA,
            {"nvmlDeviceGetCount": "Unknown Error"},
            "NVIDIA: NVML could not list the GPUs: Unknown Error",
            1,
            id="no list",
        ),
    ],
)
def test_nvml_without_gpus_gives_a_note(machine, gpus: Any, failing: Any, note: str, shutdowns: int) -> None:
    nvml = machine.nvidia(gpus, fails_in=failing)
    found = targets.discover()
    assert found.targets == ()
    assert note in found.notes
    assert nvml.calls.count("nvmlShutdown") == shutdowns


def test_an_error_at_nvml_s_end_loses_nothing(machine) -> None:
    machine.nvidia(NVIDIA, fails_in={"nvmlShutdown": "Uninitialized"})
    assert targets.discover().targets == (SM80, SM90, SM100)


@pytest.mark.parametrize(
    ("gpus", "variables", "certain"),
    [
        pytest.param(NVIDIA, {}, False, id="fastest first, where the driver's idea of it counts"),
        pytest.param(NVIDIA, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, False, id="said aloud"),
        pytest.param(NVIDIA, {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, True, id="the bus's"),
        pytest.param(NVIDIA, {"CUDA_VISIBLE_DEVICES": "1"}, False, id="a number is one in the driver's order"),
        pytest.param(NVIDIA, {"CUDA_VISIBLE_DEVICES": "GPU-bbbb2222,GPU-aaaa1111"}, True, id="UUIDs"),
        pytest.param(NVIDIA, {"CUDA_VISIBLE_DEVICES": "MIG-1234"}, True, id="MIG"),
        pytest.param(ALIKE, {}, True, id="all alike"),
        pytest.param({"GPU-1": (9, 0)}, {}, True, id="one"),
    ],
)
def test_an_order_that_the_driver_may_change_is_said(machine, monkeypatch, gpus: Any, variables: Any, certain: bool) -> None:
    """CUDA programming guide, CUDA_DEVICE_ORDER: FASTEST_FIRST is the default; NVML counts along the bus."""
    machine.nvidia(gpus, mig={"MIG-1234": (9, 0)})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    said = [note for note in targets.discover().notes if note.startswith("NVIDIA") and "order" in note]
    assert len(said) == (0 if certain else 1)
    for note in said:
        assert note.startswith("NVIDIA: unlike GPUs (sm80, sm90, sm100) in the order of the bus; the driver's order, ")
        assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in note


def test_a_lost_gpu_among_like_ones_leaves_the_order_open(machine) -> None:
    machine.nvidia(ALIKE, fails_in={("nvmlDeviceGetHandleByIndex", 1): "GPU is lost"})
    assert any("unlike GPUs (sm90, one that could not be read)" in note for note in targets.discover().notes)


# Both


def test_a_bare_machine_has_a_note_for_each_vendor() -> None:
    found = targets.discover()
    assert found.targets == ()
    assert [note.partition(":")[0] for note in found.notes] == ["AMD", "NVIDIA"]
    assert targets.default() == CPU


def test_both_vendors_in_one_machine(machine) -> None:
    machine.amd("gfx950")
    machine.nvidia(ALIKE)
    assert targets.discover() == ((GFX950, SM90, SM90, SM90), ())


def test_discovery_is_never_remembered(machine, monkeypatch) -> None:
    """A scheduler hides devices at import and shows them later, and the other way round."""
    assert targets.default() == CPU
    machine.nvidia(NVIDIA)
    assert targets.default() == SM80
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert targets.default() == SM90
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert targets.default() == CPU


# What is known and not served


def test_an_intel_gpu_is_known_and_not_served(machine) -> None:
    machine.intel(0, "amdgpu", "0x1002")  # another vendor's
    machine.intel(1, "vfio-pci")  # given away
    assert targets.default() == CPU
    machine.intel(2)
    assert targets.default() == targets.Target("xpu")
    assert targets.discover().notes[-1].startswith("Intel: 1 found, known and not served")
    assert compat.capabilities().why("gpu") == "needs a GPU: found an Intel GPU, which is known and not served"
    assert not compat.capabilities().triton_gpu


def test_ascend_npus_are_known_and_not_served(machine) -> None:
    machine.ascend(0, 1)
    assert targets.default() == targets.Target("npu")
    assert targets.discover().notes[-1].startswith("Ascend: 2 found, known and not served")
    assert compat.capabilities("npu").why("gpu") == "needs a GPU: found an Ascend NPU, which is known and not served"


def test_a_gpu_that_is_served_comes_first(machine) -> None:
    machine.intel(0, "i915")
    machine.nvidia({"GPU-aaaa1111": (9, 0)})
    assert targets.default() == targets.cuda(90)
