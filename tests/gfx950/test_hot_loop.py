"""The static counts of capgate's hot loop are what a wave executes in one pass of it, by the emulator's independent count."""

import pytest
import torch

from capgate.compat.offline.disassembly import hot_loop, read_amdgcn
from support import sample_kernels
from support.emulation import compile_kernel, launch

BLOCK, WAVES = 64, 4


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float16, torch.float32], ids=lambda dtype: str(dtype)[6:])
def test_a_pass_of_the_loop_executes_what_was_counted(dtype):
    """Two runs that differ in the number of passes alone: prologue and epilogue cancel out, also those of a pipeline."""
    counted, texts = [], set()
    blocks = {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK, "BLOCK_K": BLOCK}
    for passes in (4, 9):
        depth = passes * BLOCK
        a, b = (torch.ones(shape).to(dtype) for shape in ((BLOCK, depth), (depth, BLOCK)))
        arguments = (a, b, torch.empty(BLOCK, BLOCK), BLOCK, BLOCK, depth)
        texts.add(compile_kernel(sample_kernels.matmul, arguments, blocks, num_warps=WAVES).asm["amdgcn"])
        counted.append(launch(sample_kernels.matmul, (1, 1), arguments, blocks, num_warps=WAVES).counters)
    (text,) = texts
    few, many = counted

    loop = hot_loop(read_amdgcn(text), WAVES)
    assert loop is not None
    for kind in ("valu", "salu", "mfma", "lds", "vmem"):
        assert getattr(loop, kind) == (many.instructions[kind] - few.instructions[kind]) / 5 / WAVES, kind
    assert loop.total == (many.total - few.total) / 5 / WAVES
    assert loop.products == BLOCK**3 / WAVES
