"""targets: what names mean, and the target of a tensor's own device."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capgate.compat import targets
from capgate.compat.targets import CPU, Target, cuda, hip

GFX942, GFX950 = hip("gfx942"), hip("gfx950")
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
        ("xpu", Target("xpu")),
        ("NPU", Target("npu")),
    ],
)
def test_accepted_names(text: str, target: Target) -> None:
    assert targets.parse(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "hip",
        "hip:",
        "hip:90",
        "cuda",
        "cuda:",
        "cuda:0",
        "cuda:9.0",
        "cuda:gfx950",
        "cuda:-1",
        "sm90:x",
        "xpu:0",
    ],
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
        (Target("cuda"), "cuda", "a cuda GPU that could not be read", True),
        (CPU, "cpu", "no GPU", False),
        (Target("mps"), "mps", "mps", False),
        (Target("xpu"), "xpu", "an Intel GPU, which is known and not served", False),
    ],
    ids=str,
)
def test_words_for_a_target(target: Target, text: str, label: str, is_gpu: bool) -> None:
    assert (str(target), target.label, target.is_gpu) == (text, label, is_gpu)


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


def test_a_device_that_is_not_visible(torch, machine, monkeypatch) -> None:
    machine.nvidia(NVIDIA)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    words = (
        r"^device: got cuda:3, needs a visible GPU: found 3 for cuda \(NVIDIA: unlike GPUs .*\); torch.cuda.init\(\) lets the "
    )
    with pytest.raises(ValueError, match=words):
        targets.of_device(torch.device("cuda:3"))


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        pytest.param(
            {"cuda": "12.8"},
            "found 0 for cuda (NVIDIA: NVML Shared Library Not Found); "
            "torch.cuda.init() lets the driver answer, or name the target, such as 'cuda:90'",
            id="no NVML",
        ),
        pytest.param(
            {"hip": "7.2"},
            "kfd is absent)); torch.cuda.init() lets the driver answer, or name the target, such as 'hip:gfx950'",
            id="no KFD",
        ),
        pytest.param({}, "; this torch is built for no GPU: name the target, such as 'cuda:90'", id="torch without GPUs"),
    ],
)
def test_a_device_that_discovery_cannot_see_says_why_and_what_helps(torch, monkeypatch, versions: Any, words: str) -> None:
    """The other vendor's reason is not this device's."""
    for name in ("cuda", "hip"):
        monkeypatch.setattr(torch.version, name, versions.get(name))
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        targets.of_device(torch.device("cuda"))
    assert ("AMD" in str(raised.value)) is ("hip" in versions)


def test_the_reason_for_a_hidden_device_is_the_variable(torch, machine, monkeypatch) -> None:
    machine.nvidia(NVIDIA)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match=r"found 0 for cuda .*3 found, all hidden by CUDA_VISIBLE_DEVICES=''"):
        targets.of_device(torch.device("cuda"))


@pytest.mark.parametrize("hip_version", [None, "7.1"], ids=["cuda", "rocm"])
def test_a_device_that_could_not_be_read_is_an_error_and_no_other_target(torch, machine, monkeypatch, hip_version: Any) -> None:
    machine.nvidia(NVIDIA, fails_in={("nvmlDeviceGetHandleByIndex", 1): "GPU is lost"})
    machine.kfd({0: 0, 1: 90402, 2: 19999999, 3: 90500})
    monkeypatch.setattr(torch.version, "hip", hip_version)
    others = [targets.of_device(torch.device("cuda", index)) for index in (0, 2)]
    assert others == ([GFX942, GFX950] if hip_version else [SM80, SM100])
    cause = "rocm-bootstrap knows no gfx" if hip_version else "GPU is lost"
    with pytest.raises(ValueError, match=f"^device: got cuda:1, needs a GPU that can be read .*GPU 1 .*{cause}"):
        targets.of_device(torch.device("cuda:1"))


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


def test_an_index_that_a_started_driver_does_not_have(torch, monkeypatch) -> None:
    def get_device_properties(index: int) -> Any:
        raise AssertionError("Invalid device id")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", get_device_properties)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"^device: got cuda:7, needs one of the driver's 2 GPUs$"):
        targets.of_device(torch.device("cuda:7"))


def test_the_driver_s_order_is_believed_once_it_has_started(torch, machine, monkeypatch) -> None:
    """A display GPU comes first on the bus, and last with a driver that counts the fastest first."""
    machine.nvidia({"GPU-display": (12, 0), "GPU-compute": (9, 0)})
    device = torch.device("cuda:0")
    assert targets.of_device(device) == cuda(120)
    assert targets.default() == cuda(120)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(major=9, minor=0))
    assert targets.of_device(device) == SM90
    assert targets.default() == SM90
