"""visibility: what the *_VISIBLE_DEVICES variables leave, against the runtimes' own rules; each row names its source."""

from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from capgate.compat import _visibility as visibility
from capgate.compat import targets
from capgate.compat.targets import CPU, cuda, hip

# Where a row comes from, and what is to be read there.
RVD = "ROCR-Runtime, amd_filter_device.cpp"  # BuildRvdTokenList, ProcessUuidToken, BuildUsrDeviceList
CLR = "clr, rocdevice.cpp"  # Device::init
FLAGS = "clr, flags.cpp"  # Flag::init, removeQuotes
GUIDE = "CUDA programming guide, CUDA Environment Variables"
TORCH = "torch/cuda/__init__.py"  # _parse_visible_devices, _transform_uuid_to_ordinals

A, B, C, D = (hip(arch) for arch in ("gfx942", "gfx950", "gfx1201", "gfx1030"))
AMD_UUIDS = {1: 0xAAAA111100000001, 2: 0xAAAA2222000000AB, 3: 0x00BB3333000000CD}  # the fourth GPU has none

X, Y, Z = cuda(80), cuda(90), cuda(120)
NVIDIA = {
    "GPU-aaaa1111-0000-0000-0000-000000000001": (8, 0),
    "GPU-aaaa2222-0000-0000-0000-000000000002": (9, 0),
    "GPU-bbbb3333-0000-0000-0000-000000000003": (12, 0),
}
MIG_DEVICES = {"MIG-1111": (9, 0), "MIG-2222": (8, 0)}


class Row(NamedTuple):
    """What ``variables`` (name=value, separated by semicolons) leave of the four AMD or three NVIDIA GPUs, and who says so."""

    variables: str
    visible: tuple[targets.Target, ...]
    source: str


AMD_ROWS = [
    Row("", (A, B, C, D), CLR),
    # ROCr
    Row("ROCR_VISIBLE_DEVICES=1,2", (B, C), RVD),
    Row("ROCR_VISIBLE_DEVICES=3,0", (D, A), RVD),
    Row("ROCR_VISIBLE_DEVICES= 1 ,\t2", (B, C), RVD),
    Row("ROCR_VISIBLE_DEVICES=", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=-1", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=2,-1,0", (C,), RVD),
    Row("ROCR_VISIBLE_DEVICES=2,9,0", (C,), RVD),
    Row("ROCR_VISIBLE_DEVICES=2,x,0", (C,), RVD),
    Row("ROCR_VISIBLE_DEVICES=2,1gpu,0", (C,), RVD),
    Row("ROCR_VISIBLE_DEVICES=1,0,1,2", (B, A), RVD),
    Row("ROCR_VISIBLE_DEVICES=0x1,02,+3", (B, C, D), RVD),
    Row("ROCR_VISIBLE_DEVICES=08", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=1,", (B,), RVD),
    Row("ROCR_VISIBLE_DEVICES=1,,0", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=,1", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=GPU-aaaa2222000000ab", (B,), RVD),
    Row("ROCR_VISIBLE_DEVICES=gpu-AAAA2222000000AB", (B,), RVD),
    Row("ROCR_VISIBLE_DEVICES=GPU-00bb,0", (C, A), RVD),
    Row("ROCR_VISIBLE_DEVICES=GPU-bb", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=0,GPU-aaaa,2", (A,), RVD),
    Row("ROCR_VISIBLE_DEVICES=0,GPU-,2", (A,), RVD),
    Row("ROCR_VISIBLE_DEVICES=1,GPU-aaaa2,0", (B,), RVD),
    Row("ROCR_VISIBLE_DEVICES=GPU-aaaa2222000000ab0", (), RVD),
    Row("ROCR_VISIBLE_DEVICES=GPU-XX", (), RVD),
    # HIP, which reads CUDA's variable where its own is empty
    Row("HIP_VISIBLE_DEVICES=1", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES=2,0", (C, A), CLR),
    Row("HIP_VISIBLE_DEVICES=1, 2", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES= 1", (), CLR),
    Row("HIP_VISIBLE_DEVICES=1,0,1,2", (B, A, C), CLR),
    Row("HIP_VISIBLE_DEVICES=1,7,0", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES=1,-1,0", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES=-1", (), CLR),
    Row("HIP_VISIBLE_DEVICES=01", (), CLR),
    Row("HIP_VISIBLE_DEVICES=+1", (), CLR),
    Row("HIP_VISIBLE_DEVICES=0x1", (), CLR),
    Row("HIP_VISIBLE_DEVICES=1gpu", (), CLR),
    Row("HIP_VISIBLE_DEVICES=1,", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES=1,,0", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES=,1", (), CLR),
    Row("HIP_VISIBLE_DEVICES=GPU-aaaa2222000000ab,0", (B, A), CLR),
    Row("HIP_VISIBLE_DEVICES=GPU-aaaa", (A,), CLR),
    Row("HIP_VISIBLE_DEVICES=GPU-00bb", (C,), CLR),
    Row("HIP_VISIBLE_DEVICES=GPU-AAAA2222000000AB", (), CLR),
    Row("HIP_VISIBLE_DEVICES=gpu-aaaa2222000000ab", (), CLR),
    Row("HIP_VISIBLE_DEVICES=1, GPU-aaaa1111", (B,), CLR),
    Row("HIP_VISIBLE_DEVICES=GPU-ffff,0", (), CLR),
    Row("HIP_VISIBLE_DEVICES=GPU-XX", (D,), CLR),
    Row("HIP_VISIBLE_DEVICES=", (), FLAGS),
    Row('HIP_VISIBLE_DEVICES="2,1"', (C, B), FLAGS),
    Row('HIP_VISIBLE_DEVICES="2",1', (), FLAGS),
    Row('HIP_VISIBLE_DEVICES="";CUDA_VISIBLE_DEVICES=1', (B,), FLAGS),
    Row('HIP_VISIBLE_DEVICES=""', (A, B, C, D), FLAGS),
    Row("CUDA_VISIBLE_DEVICES=1", (B,), CLR),
    Row("CUDA_VISIBLE_DEVICES=", (), FLAGS),
    Row("CUDA_VISIBLE_DEVICES=1,1gpu", (B,), CLR),
    Row("CUDA_VISIBLE_DEVICES=1;HIP_VISIBLE_DEVICES=0", (A,), CLR),
    Row("CUDA_VISIBLE_DEVICES=0;HIP_VISIBLE_DEVICES=", (), FLAGS),
    Row("GPU_DEVICE_ORDINAL=1", (A, B, C, D), CLR),
    # HIP counts in what ROCr left
    Row("ROCR_VISIBLE_DEVICES=1,2;HIP_VISIBLE_DEVICES=1", (C,), CLR),
    Row("ROCR_VISIBLE_DEVICES=2,1;CUDA_VISIBLE_DEVICES=0", (C,), CLR),
    Row("ROCR_VISIBLE_DEVICES=1,2;HIP_VISIBLE_DEVICES=2", (), CLR),
    Row("ROCR_VISIBLE_DEVICES=1,2;HIP_VISIBLE_DEVICES=GPU-aaaa", (B,), CLR),
    Row("ROCR_VISIBLE_DEVICES=;HIP_VISIBLE_DEVICES=0", (), RVD),
]

NVIDIA_ROWS = [
    Row("", (X, Y, Z), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=2,1", (Z, Y), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=", (), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=0,2,-1,1", (X, Z), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=-1", (), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=1,9,0", (Y,), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=GPU-aaaa2222-0000-0000-0000-000000000002", (Y,), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb", (Z,), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=GPU-aaaa", (), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=0, 1", (X, Y), TORCH),
    Row("CUDA_VISIBLE_DEVICES=1,,0", (Y,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=0,0", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=1,0,1", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=1,9,9", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=1,-1,1", (Y,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=1gpu,0x2", (Y, X), TORCH),
    Row("CUDA_VISIBLE_DEVICES=+1,01", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=-0", (X,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=NoDevFiles", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=1,GPU-bbbb,0", (Y,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-BBBB3333", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=gpu-bbbb3333", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES= GPU-bbbb", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb,GPU-aaaa1", (Z, X), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb, GPU-aaaa1", (Z,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb,0", (Z,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb,GPU-dddd,GPU-aaaa1", (Z,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb3333,GPU-bbbb", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=GPU-bbbb,GPU-dddd,GPU-dddd", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=MIG-1111", (Y,), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=MIG-2222,MIG-1111", (X,), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=MIG-1111,MIG-1111", (), TORCH),
    Row("CUDA_VISIBLE_DEVICES=MIG-dddd", (), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=1,MIG-1111,0", (Y,), TORCH),
    Row("CUDA_VISIBLE_DEVICES=MIG-GPU-bbbb3333-0000-0000-0000-000000000003/1/2", (Z,), GUIDE),
    Row("CUDA_VISIBLE_DEVICES=MIG-GPU-dddd/1/2", (), GUIDE),
    # other runtimes' variables
    Row("HIP_VISIBLE_DEVICES=1;ROCR_VISIBLE_DEVICES=1", (X, Y, Z), GUIDE),
]


def _check(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [setting.partition("=")[::2] for setting in row.variables.split(";") if setting]
    for name, value in settings:
        monkeypatch.setenv(name, value)
    found = targets.discover()
    assert found.targets == row.visible, row.source
    assert targets.default() == (row.visible or (CPU,))[0]
    if not row.visible:
        assert any(f"found, all hidden by {name}={value!r}" in note for note in found.notes for name, value in settings)


@pytest.mark.parametrize("row", AMD_ROWS, ids=lambda row: row.variables or "nothing set")
def test_visible_amd_gpus(machine, monkeypatch, row: Row) -> None:
    machine.kfd(
        {0: 0, 1: 90402, 2: 90500, 3: 120001, 4: 100300},
        properties={node: {"unique_id": uuid} for node, uuid in AMD_UUIDS.items()},
    )
    _check(row, monkeypatch)


@pytest.mark.parametrize("row", NVIDIA_ROWS, ids=lambda row: row.variables or "nothing set")
@pytest.mark.parametrize("as_bytes", [False, True], ids=["text", "bytes"])
def test_visible_nvidia_gpus(machine, monkeypatch, row: Row, as_bytes: bool) -> None:
    nvml = machine.nvidia(
        {uuid.encode() if as_bytes else uuid: capability for uuid, capability in NVIDIA.items()}, mig=MIG_DEVICES
    )
    _check(row, monkeypatch)
    assert nvml.calls.count("nvmlInit") == nvml.calls.count("nvmlShutdown") > 0
    assert nvml.calls[-1] == "nvmlShutdown"


NUMBERS = ["0", "1", "2", "3", "9", "-1", "+1", "01", " 1", "1 ", "1gpu", "0x1", "", "x"]
UUIDS = ["GPU-", "GPU-aaaa", "GPU-aaaa1", "GPU-bbbb", "GPU-BBBB", "gpu-bbbb", " GPU-bbbb", *NVIDIA]
ENTRIES = st.sampled_from(NUMBERS + UUIDS)


@given(st.lists(ENTRIES, min_size=1, max_size=5).map(",".join) | st.text("0123+-, GPUabgx", max_size=12))
@example("GPU-aaaa1,GPU-bbbb,GPU-aaaa1111")
@example("2,9,9")
def test_cuda_s_variable_against_torch_s_own_reading(setting: str) -> None:
    """torch's parser was held against a driver; a sign without digits is an error in it, and no number here."""
    torch = pytest.importorskip("torch")
    uuids = list(NVIDIA)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.version, "hip", None)
        patch.setenv("CUDA_VISIBLE_DEVICES", setting)
        try:
            asked = torch.cuda._parse_visible_devices()
        except ValueError:
            assert "+" in setting or "-" in setting
            return
        if asked and isinstance(asked[0], str):
            asked = torch.cuda._transform_uuid_to_ordinals(asked, uuids)
    kept = next((asked[:at] for at, ordinal in enumerate(asked) if ordinal >= len(uuids)), asked)
    assert visibility.cuda(setting, uuids) == kept


@given(st.text('0123GPUgpuXx-+," aabf\t', max_size=24), st.lists(st.sampled_from(["", "GPU-aa", "GPU-ab"]), max_size=4))
def test_any_text_leaves_gpus_that_are_there_and_each_once(setting: str, uuids: list[str]) -> None:
    for read in (visibility.cuda, visibility.rocr, visibility.hip):
        visible = read(setting, uuids)
        assert set(visible) <= set(range(len(uuids)))
        assert len(set(visible)) == len(visible)
