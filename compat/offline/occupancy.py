"""What a compiled kernel takes of a compute unit or SM, from the compiler's own words, and how many of its waves fit there."""

import re
from typing import NamedTuple

REGISTERS_PER_LANE = 512  # of one SIMD (gfx90a and later, VGPRs and AGPRs together) and of one SM sub-partition, 32 bits each
REGISTER_GRANULE = 8
SIMDS = 4  # of a compute unit, and sub-partitions of an SM


class Resources(NamedTuple):
    """Registers of a lane or thread, bytes, and waves. None: the compiler did not say.

    vgprs : architectural vector registers; on NVIDIA the registers of a thread
    agprs : accumulation registers, from the same 512 as ``vgprs`` since gfx90a; on NVIDIA 0
    sgprs : scalar registers of a wave; on NVIDIA None
    spills : on AMD vector and scalar registers spilled; on NVIDIA bytes of spill stores and spill loads; 0 means none
    scratch_bytes : private memory of a lane: what is spilled, and arrays indexed at run time
    lds_bytes : LDS or shared memory of a workgroup
    waves_per_simd : waves on each of the 4 SIMDs of a compute unit (warps on each sub-partition of an SM) when it is full of
        whole workgroups; None for an architecture without a row in the tables below
    code_bytes : machine code
    """

    vgprs: int | None
    agprs: int | None
    sgprs: int | None
    spills: int | None
    scratch_bytes: int | None
    lds_bytes: int | None
    waves_per_simd: float | None
    code_bytes: int | None


# --- AMD ------------------------------------------------------------------------------------------------------------------

# LDS of a compute unit, and the steps in which a workgroup gets it: LLVM's AMDGPU back end.
LDS: dict[str, tuple[int, int]] = {"gfx90a": (64 * 1024, 512), "gfx942": (64 * 1024, 512), "gfx950": (160 * 1024, 1280)}


def of_amdgcn(assembly: str, arch: str, lds_bytes: int | None) -> Resources:
    """From the assembly text: the code object's metadata, and LLVM's remarks behind the code (code length, occupancy).

    lds_bytes : as Triton's metadata says; the code object's own figure is 0, because Triton's LDS is dynamic

    LLVM's occupancy knows the registers and the most waves of the architecture; whole workgroups and LDS are added here.
    """

    def stated(name: str) -> int | None:
        found = re.search(rf"^\s*(?:- )?\.{name}:\s*(\d+)", assembly, re.MULTILINE)
        return int(found[1]) if found else None

    total, agprs = stated("vgpr_count"), stated("agpr_count") or 0  # architectures without AGPRs do not mention them
    vector_spills, scalar_spills = stated("vgpr_spill_count"), stated("sgpr_spill_count")
    lengths = re.findall(r"^; codeLenInByte = (\d+)", assembly, re.MULTILINE)
    occupancy = re.search(r"^; Occupancy: (\d+)", assembly, re.MULTILINE)
    waves, resident = waves_of_amdgcn(assembly), None
    if waves and occupancy and lds_bytes is not None and arch in LDS:
        workgroups = [int(occupancy[1]) * SIMDS // waves]
        size, granule = LDS[arch]
        if lds_bytes:
            workgroups.append(size // (-(-lds_bytes // granule) * granule))
        resident = min(workgroups) * waves / SIMDS
    return Resources(
        vgprs=None if total is None else total - agprs,  # the metadata counts both files together
        agprs=None if total is None else agprs,
        sgprs=stated("sgpr_count"),
        spills=None if vector_spills is None or scalar_spills is None else vector_spills + scalar_spills,
        scratch_bytes=stated("private_segment_fixed_size"),
        lds_bytes=lds_bytes,
        waves_per_simd=resident,
        code_bytes=sum(map(int, lengths)) if lengths else None,
    )


def waves_of_amdgcn(assembly: str) -> int | None:
    """Waves of a workgroup: Triton launches exactly the largest size that it declares. None where it declares none."""
    threads = re.search(r"\.max_flat_workgroup_size:\s*(\d+)", assembly)
    lanes = re.search(r"\.wavefront_size:\s*(\d+)", assembly)
    return -(-int(threads[1]) // int(lanes[1])) if threads and lanes else None


# --- NVIDIA ---------------------------------------------------------------------------------------------------------------


class Multiprocessor(NamedTuple):
    """What CUDA's programming guide says of a compute capability."""

    shared_bytes: int
    warps: int
    blocks: int


_DATACENTRE, _CONSUMER = Multiprocessor(228 * 1024, 64, 32), Multiprocessor(100 * 1024, 48, 24)
MULTIPROCESSORS = {
    "89": _CONSUMER,
    "90": _DATACENTRE,
    "100": _DATACENTRE,
    "103": _DATACENTRE,
    "120": _CONSUMER,
    "121": _CONSUMER,
}
RESERVED_SHARED_BYTES = 1024  # of each block, by the system
TENSOR_COLUMNS = 512  # of an SM's tensor memory


def of_ptxas(
    log: str, arch: str, *, warps: int, shared_bytes: int | None, tensor_columns: int, code_bytes: int | None
) -> Resources:
    """From what ``ptxas -v`` says of one kernel.

    warps, shared_bytes, tensor_columns : of a block
    """
    used = re.search(r"Used (\d+) registers", log)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)
    stack = re.search(r"(\d+) bytes stack frame", log)
    registers = int(used[1]) if used else None
    waves = None
    if registers and shared_bytes is not None and arch in MULTIPROCESSORS:
        sm = MULTIPROCESSORS[arch]
        allocated = -(-registers // REGISTER_GRANULE) * REGISTER_GRANULE
        blocks = [
            sm.blocks,
            sm.warps // warps,
            REGISTERS_PER_LANE // allocated * SIMDS // warps,
            sm.shared_bytes // (shared_bytes + RESERVED_SHARED_BYTES),
        ]
        if tensor_columns:
            blocks.append(TENSOR_COLUMNS // tensor_columns)
        waves = min(blocks) * warps / SIMDS
    return Resources(
        vgprs=registers,
        agprs=0,
        sgprs=None,
        spills=sum(map(int, spilled)) if spilled else None,
        scratch_bytes=int(stack[1]) if stack else None,
        lds_bytes=shared_bytes,
        waves_per_simd=waves,
        code_bytes=code_bytes,
    )


def warps_of_ptx(ptx: str, otherwise: int) -> int:
    """Warps of a block: with those of warp-specialised partitions, which Triton's ``num_warps`` leaves out."""
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", ptx)
    return -(-int(threads[1]) // 32) if threads else otherwise


def shared_limit(backend: str, arch: str) -> int | None:
    """Bytes of LDS or shared memory that one workgroup or block can have; None for an architecture without a row above."""
    if backend == "hip":
        return LDS[arch][0] if arch in LDS else None
    return MULTIPROCESSORS[arch].shared_bytes - RESERVED_SHARED_BYTES if arch in MULTIPROCESSORS else None
