"""The table: where its facts come from, and what assemblers say of the targets that it lists."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from capgate.compat import targets
from capgate.compat.table import TABLE

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", TABLE)
def test_every_row_says_where_its_fact_comes_from(name: str) -> None:
    source = TABLE[name].source
    assert source == source.strip()
    assert len(source.split()) > 1 or source.startswith("https://")
    for address in re.findall(r"\S+://\S+", source):
        assert re.fullmatch(r"https://[\w./-]+[\w/][,;]?", address), address
    for path in re.findall(r"(?<![\w/])(?:tests|docs)/[\w./-]+\w", source):
        assert (ROOT / path).exists(), path


def test_what_a_release_is_asked_for_is_no_guess() -> None:
    """Only the meaning of something may be asked of a version number, and then somebody has said or seen it."""
    by_release = [name for name, row in TABLE.items() if row.probe and "release" in row.probe.__qualname__.split(".")]
    assert by_release
    for name in by_release:
        assert re.search(r"pull/\d+| here\b", TABLE[name].source), name


# One instruction for each thing that a target may have. AMD's: any of several, as architectures spell it.
AMD = {
    "mfma": ["v_mfma_f32_16x16x16f16 a[0:3], v[4:5], v[6:7], a[0:3]"],
    "scaled_mfma": ["v_mfma_scale_f32_16x16x128_f8f6f4 v[0:3], v[4:11], v[12:19], v[0:3], v20, v21 op_sel_hi:[0,0,0]"],
    "direct_to_lds_128": ["buffer_load_dwordx4 v0, s[0:3], 0 offen lds"],
    "fp8": [
        "v_mfma_f32_16x16x32_fp8_fp8 v[0:3], v[4:5], v[6:7], v[0:3]",
        "v_wmma_f32_16x16x16_fp8_fp8 v[0:7], v[8:9], v[10:11], v[0:7]",
        "v_wmma_f32_16x16x64_fp8_fp8 v[0:7], v[8:15], v[16:23], v[0:7]",
    ],
}
PTX = {
    "fp8_e4m3fn": ".reg .b32 a<4>, b<2>; .reg .f32 c<4>; mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
    "{c0, c1, c2, c3}, {a0, a1, a2, a3}, {b0, b1}, {c0, c1, c2, c3};",
    "tma": ".reg .b64 map; .reg .b32 to, x, barrier; "
    "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [to], [map, {x}], [barrier];",
    "wgmma": "wgmma.fence.sync.aligned;",
    "griddepcontrol": "griddepcontrol.wait;",
    "tcgen05": ".reg .b32 at; tcgen05.dealloc.cta_group::1.sync.aligned.b32 at, 32;",
}

# In a process of its own: it makes LLVM's targets known, which only a compile does otherwise.
ASSEMBLE = """
import json, sys
from triton._C.libtriton import amd, llvm

def takes(arch, line):
    text = f"\\t.text\\n\\t{line}\\n"
    try:
        try:
            return bool(amd.assemble_amdgcn(text, arch, ""))
        except TypeError:  # 3.9's takes the triple, too
            return bool(amd.assemble_amdgcn(text, "amdgcn-amd-amdhsa", arch, ""))
    except RuntimeError:
        return False

llvm.init_targets()
archs, instructions = json.load(sys.stdin)
told = {arch: {name: any(takes(arch, line) for line in lines) for name, lines in instructions.items()} for arch in archs}
print(json.dumps(told))
"""


def test_the_assembler_for_amd_agrees(lane: str) -> None:
    archs = {arch for row in TABLE.values() if row.kind == "target" for arch in row.archs if arch.startswith("gfx")}
    archs -= {"gfx1250"} if lane in ("3.5.1", "3.6.0") else set()  # whose LLVM has it in part
    asked = json.dumps([sorted(archs | {"gfx1100", "gfx1201"}), AMD])
    done = subprocess.run([sys.executable, "-c", ASSEMBLE], input=asked, capture_output=True, text=True, check=True)
    for arch, takes in json.loads(done.stdout).items():
        has = {name: arch in TABLE[name].archs for name in AMD if name in TABLE}
        has["fp8"] = arch in TABLE["fp8_e4m3fn"].archs or arch in TABLE["fp8_e4m3fnuz"].archs
        assert takes == has, arch


def test_ptxas_agrees(lane: str) -> None:
    nvidia = pytest.importorskip("triton.backends.nvidia.compiler")
    labels = {arch for row in TABLE.values() if row.kind == "target" for arch in row.archs if arch.startswith("sm")}
    asked = 0
    for label in sorted(labels - {"sm101"} | {"sm80"}):  # sm101 is sm110's name before PTX 9.0
        number = int(targets.parse(label).arch)
        path = nvidia.get_ptxas(number).path if lane != "3.5.1" else nvidia.get_ptxas().path
        gpu = f"sm_{number}" + ("a" if number >= 90 else "")
        version = "9.0" if number == 110 else "8.7"

        def assembles(body: str, path: str = path, gpu: str = gpu, version: str = version) -> bool:
            text = f".version {version}\n.target {gpu}\n.address_size 64\n.visible .entry k() {{ {body} ret; }}\n"
            command = [path, f"--gpu-name={gpu}", "--input-as-string", text, "-o", "/dev/null"]
            return subprocess.run(command, capture_output=True).returncode == 0

        if not assembles(""):  # newer than this ptxas
            continue
        asked += 1
        assert {name: assembles(body) for name, body in PTX.items()} == {name: label in TABLE[name].archs for name in PTX}, gpu
    assert asked >= 5
