"""targets: what names mean, and the GPUs that a machine shows."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capgate.compat import targets
from capgate.compat.targets import CPU, Target, cuda, hip

GFX942, GFX950, GFX1201 = hip("gfx942"), hip("gfx950"), hip("gfx1201")
SM80, SM90, SM100 = cuda(80), cuda(90), cuda(100)

NVIDIA = {"GPU-aaaa1111": (8, 0), "GPU-bbbb2222": (9, 0), "GPU-cccc3333": (10, 0)}


# Names


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("hip:gfx950", Target("hip", "gfx950", 64)),
        ("hip:gfx950:sramecc+:xnack-", Target("hip", "gfx950", 64)),
        ("gfx942:sramecc+:xnack-", Target("hip", "gfx942", 64)),
        ("gfx1201", Target("hip", "gfx1201", 32)),
        (" HIP:GFX950 ", Target("hip", "gfx950", 64)),
        ("cuda:90", Target("cuda", "90", 32)),
        ("cuda:sm_90a", Target("cuda", "90", 32)),
        ("sm90", Target("cuda", "90", 32)),
        ("sm_120", Target("cuda", "120", 32)),
        ("cpu", CPU),
    ],
)
def test_accepted_names(text: str, target: Target) -> None:
    assert targets.parse(text) == target


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "hip", "hip:", "hip:90", "cuda", "cuda:", "cuda:0", "cuda:9.0", "cuda:gfx950", "cuda:-1", "sm90:x", "xpu"],
)
def test_rejected_names_are_told_what_is_needed(text: str) -> None:
    with pytest.raises(ValueError, match=f"^target: got {text!r}, needs 'hip:gfx950', 'cuda:90' or 'cpu'"):
        targets.parse(text)


@pytest.mark.parametrize("text", ["hip:gfx9500", "gfx95", "gfx905:xnack-"])
def test_an_unknown_amd_name_lists_the_nearest(text: str) -> None:
    with pytest.raises(ValueError, match=r"which is no AMD architecture; the nearest are .*gfx950"):
        targets.parse(text)


@given(st.text() | st.from_regex(r"(hip|cuda|gfx|sm)[:_]?[a-z0-9:.+]{0,8}", fullmatch=True))
def test_any_text_is_a_target_or_a_value_error(text: str) -> None:
    try:
        target = targets.parse(text)
    except ValueError:
        return
    assert targets.parse(str(target)) == target


@pytest.mark.parametrize(
    ("target", "text", "label", "is_gpu"),
    [
        (GFX950, "hip:gfx950", "gfx950", True),
        (SM90, "cuda:90", "sm90", True),
        (CPU, "cpu", "no GPU", False),
        (Target("xpu"), "xpu", "xpu", False),
    ],
    ids=str,
)
def test_words_for_a_target(target: Target, text: str, label: str, is_gpu: bool) -> None:
    assert (str(target), target.label, target.is_gpu) == (text, label, is_gpu)


# AMD


@pytest.mark.parametrize(
    ("variables", "visible"),
    [
        pytest.param({}, (GFX942, GFX950, GFX1201), id="all"),
        pytest.param({"HIP_VISIBLE_DEVICES": "1"}, (GFX950,), id="hip"),
        pytest.param({"HIP_VISIBLE_DEVICES": "2,0"}, (GFX1201, GFX942), id="hip reorders"),
        pytest.param({"HIP_VISIBLE_DEVICES": " 1 , 2 "}, (GFX950, GFX1201), id="spaces"),
        pytest.param({"ROCR_VISIBLE_DEVICES": "1,2"}, (GFX950, GFX1201), id="rocr"),
        pytest.param(
            {"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, (GFX1201,), id="hip counts in what rocr left"
        ),
        pytest.param({"CUDA_VISIBLE_DEVICES": "1"}, (GFX950,), id="cuda stands in"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, (GFX942,), id="hip outranks cuda"),
        pytest.param({"CUDA_VISIBLE_DEVICES": "0", "HIP_VISIBLE_DEVICES": ""}, (), id="an empty hip outranks cuda"),
        pytest.param({"HIP_VISIBLE_DEVICES": "1,7,0"}, (GFX950,), id="out of range ends the list"),
        pytest.param({"HIP_VISIBLE_DEVICES": "1,-1,0"}, (GFX950,), id="-1 ends the list"),
        pytest.param({"HIP_VISIBLE_DEVICES": ""}, (), id="empty"),
        pytest.param({"ROCR_VISIBLE_DEVICES": ""}, (), id="rocr empty"),
        pytest.param({"HIP_VISIBLE_DEVICES": "-1"}, (), id="-1"),
        pytest.param({"HIP_VISIBLE_DEVICES": "GPU-1a2b"}, (), id="a UUID among unlike GPUs"),
    ],
)
def test_visible_amd_gpus(machine, monkeypatch, variables: dict[str, str], visible: tuple[Target, ...]) -> None:
    machine.amd("gfx942", "gfx950", "gfx1201")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = targets.discover()
    assert found.targets == visible
    assert targets.default() == (visible or (CPU,))[0]
    if not visible:
        assert any(f"3 found, all hidden by {name}={value!r}" in found.notes[0] for name, value in variables.items())


def test_a_uuid_among_like_amd_gpus(machine, monkeypatch) -> None:
    """sysfs knows no UUIDs, but where all GPUs are alike any of them is the one."""
    machine.amd("gfx950", "gfx950", "gfx950")
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "GPU-1a2b,GPU-3c4d")
    assert targets.discover().targets == (GFX950, GFX950)


def test_amd_gpus_are_in_the_kernel_s_order(machine) -> None:
    """Nodes 2 and 10: numbers, not text; and node 0 is a CPU."""
    machine.kfd({0: 0, 10: 90500, 2: 90402})
    assert targets.discover().targets == (GFX942, GFX950)


@pytest.mark.parametrize(
    ("nodes", "note"),
    [
        pytest.param({0: 0}, "AMD: no GPU in the kernel's topology", id="only CPUs"),
        pytest.param({1: 19999999}, "AMD: the kernel's topology could not be read", id="newer than rocm-bootstrap"),
    ],
)
def test_a_topology_without_a_readable_gpu_gives_a_note(machine, nodes: dict[int, int], note: str) -> None:
    machine.kfd(nodes)
    found = targets.discover()
    assert found.targets == ()
    assert found.notes[0].startswith(note)


# NVIDIA


@pytest.mark.parametrize(
    ("setting", "visible"),
    [
        pytest.param(None, (SM80, SM90, SM100), id="all"),
        pytest.param("2,1", (SM100, SM90), id="reordered"),
        pytest.param("GPU-bbbb2222", (SM90,), id="UUID"),
        pytest.param("GPU-cccc,0", (SM100, SM80), id="UUID abbreviated"),
        pytest.param("MIG-1234", (SM90,), id="MIG"),
        pytest.param("1,9,0", (SM90,), id="out of range ends the list"),
        pytest.param("1,GPU-dddd,0", (SM90,), id="an unknown UUID ends the list"),
        pytest.param("1,,0", (SM90,), id="an empty entry ends the list"),
        pytest.param("", (), id="empty"),
        pytest.param("-1", (), id="-1"),
        pytest.param("NoDevFiles", (), id="a word"),
    ],
)
@pytest.mark.parametrize("encode", [str, str.encode], ids=["text", "bytes"])
def test_visible_nvidia_gpus(machine, monkeypatch, setting: str | None, visible: tuple[Target, ...], encode: Any) -> None:
    nvml = machine.nvidia({encode(uuid): capability for uuid, capability in NVIDIA.items()}, mig={"MIG-1234": (9, 0)})
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    found = targets.discover()
    assert found.targets == visible
    if not visible:
        assert f"NVIDIA: 3 found, all hidden by CUDA_VISIBLE_DEVICES={setting!r}" in found.notes
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown") == 1
    assert nvml.calls[-1] == "nvmlShutdown"


def test_an_unknown_mig_device_ends_the_list(machine, monkeypatch) -> None:
    machine.nvidia(NVIDIA)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,MIG-dddd,0")
    assert targets.discover().targets == (SM90,)


@pytest.mark.parametrize(
    ("gpus", "failing", "note", "shutdowns"),
    [
        pytest.param({}, {"nvmlInit": "Driver Not Loaded"}, "NVIDIA: Driver Not Loaded", 0, id="no driver"),
        pytest.param({}, {}, "NVIDIA: the driver lists no GPU", 1, id="no GPU"),
        pytest.param(
            NVIDIA,
            {"nvmlDeviceGetUUID": "GPU is lost"},
            "NVIDIA: NVML could not describe the GPUs: GPU is lost",
            1,
            id="a lost GPU",
        ),
    ],
)
def test_nvml_without_gpus_gives_a_note(machine, gpus: Any, failing: Any, note: str, shutdowns: int) -> None:
    nvml = machine.nvidia(gpus, fails_in=failing)
    found = targets.discover()
    assert found.targets == ()
    assert note in found.notes
    assert nvml.calls.count("nvmlShutdown") == shutdowns


def test_a_bare_machine_has_a_note_for_each_vendor() -> None:
    found = targets.discover()
    assert found.targets == ()
    assert [note.partition(":")[0] for note in found.notes] == ["AMD", "NVIDIA"]
    assert targets.default() == CPU


def test_both_vendors_in_one_machine(machine) -> None:
    machine.amd("gfx950")
    machine.nvidia(NVIDIA)
    assert targets.discover() == ((GFX950, SM80, SM90, SM100), ())


def test_discovery_is_never_remembered(machine, monkeypatch) -> None:
    """A scheduler hides devices at import and shows them later, and the other way round."""
    assert targets.default() == CPU
    machine.nvidia(NVIDIA)
    assert targets.default() == SM80
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert targets.default() == SM90
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert targets.default() == CPU


# A tensor's own device


@pytest.fixture
def torch(monkeypatch) -> Any:
    """torch with a driver that is not started, for either vendor: ``torch.version.hip`` is the test's to set."""
    module = pytest.importorskip("torch")
    monkeypatch.setattr(module.version, "hip", None)
    monkeypatch.setattr(module.cuda, "is_initialized", lambda: False)
    return module


@pytest.mark.parametrize(
    ("device", "target"), [("cpu", CPU), ("meta", CPU), ("xpu:1", Target("xpu")), ("mps", Target("mps"))], ids=str
)
def test_devices_that_are_no_gpu_of_ours(torch, device: str, target: Target) -> None:
    assert targets.of_device(torch.device(device)) == target


@pytest.mark.parametrize(
    ("hip_version", "expected"), [(None, [SM80, SM90, SM100]), ("7.1", [GFX942, GFX950])], ids=["cuda", "rocm"]
)
def test_before_the_driver_starts_discovery_answers(torch, machine, monkeypatch, hip_version: Any, expected: Any) -> None:
    """torch calls AMD GPUs "cuda" too; each build of torch counts its own vendor's GPUs only."""
    machine.amd("gfx942", "gfx950")
    machine.nvidia(NVIDIA)
    monkeypatch.setattr(torch.version, "hip", hip_version)
    found = [targets.of_device(torch.device("cuda", index)) for index in range(len(expected))]
    assert found == expected
    assert targets.of_device(torch.device("cuda")) == expected[0]


def test_a_device_that_is_not_visible(torch, machine) -> None:
    machine.nvidia(NVIDIA)
    with pytest.raises(ValueError, match=r"^device: got cuda:3, needs a visible GPU: found 3 for cuda$"):
        targets.of_device(torch.device("cuda:3"))


@pytest.mark.parametrize(
    ("hip_version", "properties", "expected"),
    [
        pytest.param(
            None,
            [SimpleNamespace(major=9, minor=0), SimpleNamespace(major=8, minor=9)],
            [SM90, cuda(89)],
            id="cuda",
        ),
        pytest.param(
            "7.1",
            [SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-"), SimpleNamespace(gcnArchName="gfx950")],
            [GFX942, GFX950],
            id="rocm",
        ),
    ],
)
def test_a_started_driver_answers_for_each_device(torch, monkeypatch, hip_version: Any, properties: Any, expected: Any) -> None:
    """The driver knows what CUDA_DEVICE_ORDER and the like made of the order; discovery does not, and is not asked."""
    asked: list[int] = []

    def get_device_properties(index: int) -> Any:
        asked.append(index)
        return properties[index]

    monkeypatch.setattr(targets, "discover", lambda: pytest.fail("the driver is started and was not asked"))
    monkeypatch.setattr(torch.version, "hip", hip_version)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", get_device_properties)
    for _ in range(2):
        assert [targets.of_device(torch.device("cuda", index)) for index in (0, 1)] == expected
        assert targets.of_device(torch.device("cuda")) == expected[1], "without an index: torch's current device"
    assert asked == [0, 1], "a started device cannot change, so it is asked once"
