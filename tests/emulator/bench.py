"""A bench for single instructions and small hand-written kernels."""

from typing import Any

import numpy as np

from . import Program, Result, run
from .decoder import step_of
from .launch import Machine
from .registers import Waves

ACCUM_OFFSET = 64


class Bench:
    """Waves of one workgroup, executing one instruction at a time.

    ``bench.v[3]`` [waves, 64] and ``bench.s[4]`` [waves] are registers as uint32.
    """

    def __init__(self, waves: int = 2, lds_bytes: int = 4096, early: bool = False, seed: int = 5) -> None:
        program = Program(metadata={"max_flat_workgroup_size": str(64 * waves)})
        self.machine = Machine(program, 1, lds_bytes, early, measure=True)
        self.waves = Waves(self.machine, np.zeros(waves, int), np.arange(waves), 128)
        self.random = np.random.default_rng(seed)
        self.v = self.waves.v
        self.s = self.waves.s.T

    @property
    def active(self) -> np.ndarray:
        return self.waves.active

    @active.setter
    def active(self, lanes: Any) -> None:
        lanes = np.broadcast_to(lanes, (self.waves.count, 64))
        self.waves.s64[:, 63] = (lanes.astype(np.uint64) << np.arange(64, dtype=np.uint64)).sum(axis=1, dtype=np.uint64)
        self.waves.exec_changed()

    def do(self, *texts: str) -> None:
        for text in texts:
            step = step_of(text, ACCUM_OFFSET)
            self.waves.check_registers(step.reads, step.writes, text, step.kind)
            with np.errstate(all="ignore"):
                step.execute(self.waves)

    def random_words(self, *registers: int) -> None:
        """Random registers, with the values that overflow and change sign among them."""
        edges = np.array([0, 1, 2, 31, 32, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF], np.uint32)
        for register in registers:
            words = self.random.integers(0, 2**32, (self.waves.count, 64), np.uint32)
            edge = self.random.random(words.shape) < 0.4
            self.v[register] = np.where(edge, self.random.choice(edges, words.shape), words)

    def random_reals(self, *registers: int) -> None:
        """Random float32 of many sizes, with zeros of both signs, infinities, NaN and denormals."""
        edges = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-42, 3.4e38], np.float32)
        for register in registers:
            shape = (self.waves.count, 64)
            reals = (self.random.standard_normal(shape) * np.exp2(self.random.integers(-30, 30, shape))).astype(np.float32)
            edge = self.random.random(shape) < 0.2
            self.v[register] = np.where(edge, self.random.choice(edges, shape), reals).astype(np.float32).view(np.uint32)


HEAD = """
	.text
	.p2align 8
small:
{body}
	s_endpgm
	.section .rodata
	.amdhsa_kernel small
		.amdhsa_group_segment_fixed_size {lds_bytes}
		.amdhsa_private_segment_fixed_size 0
		.amdhsa_kernarg_size {kernarg_size}
		.amdhsa_user_sgpr_count 2
		.amdhsa_user_sgpr_kernarg_segment_ptr 1
		.amdhsa_system_sgpr_workgroup_id_x 1
		.amdhsa_next_free_vgpr 64
		.amdhsa_accum_offset 64
	.end_amdhsa_kernel
	.amdgpu_metadata
amdhsa.kernels:
  - .args:
{arguments}
    .max_flat_workgroup_size: {threads}
	.end_amdgpu_metadata
"""
POINTER = "      - .offset: {offset}\n        .size: 8\n        .value_kind: global_buffer"
LOAD_POINTERS = "s_load_dwordx2 s[{first}:{last}], s[0:1], {offset:#x}"


def run_small(body: str, *arrays: Any, waves: int = 1, grid: int = 1, lds_bytes: int = 4096, **emulation: Any) -> Result:
    """A kernel whose pointers stand in s[4:5], s[6:7], ..., the workgroup in s2 and the thread in v0."""
    places = range(len(arrays))
    loads = [LOAD_POINTERS.format(first=4 + 2 * n, last=5 + 2 * n, offset=8 * n) for n in places]
    text = HEAD.format(
        body="\n".join([*loads, "s_waitcnt lgkmcnt(0)", body]),
        lds_bytes=lds_bytes,
        kernarg_size=8 * len(arrays),
        arguments="\n".join(POINTER.format(offset=8 * n) for n in places),
        threads=64 * waves,
    )
    return run(text, (grid,), arrays, **emulation)
