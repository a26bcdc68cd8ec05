"""The compiled gfx950 code of the paged kernels, executed instruction by instruction, agrees with float64 and with torch."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gfx950.emulator import parse, run
from gfx950.launching import bound, compile_kernel

from capgate.compat import Target
from capgate.kernels.dropin import classic as dropin_classic
from capgate.kernels.dropin.preshuffle import unshuffle_all
from capgate.kernels.key_cache import classic as cache_classic
from capgate.kernels.key_cache import reference as cache_reference
from capgate.kernels.launch import Launch
from capgate.kernels.paged_mqa_logits import classic, reference

TARGET = Target("hip", "gfx950", 64)
LIMIT = 1e-6  # of a cell's error, as a part of the sum of magnitudes

spec = importlib.util.spec_from_file_location("gfx950.paged", Path(__file__).parents[1] / "kernels" / "paged.py")
paged = importlib.util.module_from_spec(spec)
sys.modules["gfx950.paged"] = paged
spec.loader.exec_module(paged)


def execute(launch: Launch, written: list[torch.Tensor]) -> Any:
    """Compile for gfx950 and emulate; what is stored appears in the tensors. Returns the emulator's result."""
    names = {parameter.name for parameter in launch.kernel.params}
    constants = {name: value for name, value in launch.keywords.items() if name in names}
    options = {name: value for name, value in launch.keywords.items() if name not in names}
    compiled = compile_kernel(launch.kernel, launch.arguments, constants, **options)
    arguments = bound(launch.arguments, unwritten=written)
    return run(parse(compiled.asm["amdgcn"]), launch.grid, arguments, lds_bytes=compiled.metadata.shared)


def agrees(call: Any, columns: int, clean_logits: bool, workers: int) -> None:
    """Every cell that a row sees agrees, others are -inf or keep their bits, and so does what lies between the rows."""
    out = paged.judge.sentinels(call.q.shape[0] * call.q.shape[1], columns)
    memory = paged.judge.storage_of(out, torch.int32)
    before = memory.clone()
    schedule = reference.make_schedule(call.context_lens, workers)
    execute(classic.prepare(*call, schedule, out, clean_logits=clean_logits, target=TARGET), [out])
    answer = paged.formula(call, columns)
    address = torch.arange(memory.numel()).as_strided(out.shape, out.stride(), out.storage_offset())
    kept = torch.ones_like(memory, dtype=torch.bool)
    kept[address[answer.inside | clean_logits]] = False
    assert torch.equal(memory[kept], before[kept])
    assert not clean_logits or torch.isneginf(out[~answer.inside]).all()
    error = (out.double() - answer.logits).abs()[answer.inside]
    assert (error <= LIMIT * answer.magnitude[answer.inside]).all()  # a NaN is not either


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "skipped"])
@pytest.mark.parametrize("block", [1, 16, 64, 128])
def test_blocks(block: int, clean_logits: bool) -> None:
    agrees(paged.make_call([150, 0, 64, 1, 129], 1, 64, 128, block), 150, clean_logits, workers=3)


@pytest.mark.parametrize(("heads", "dim", "next_n"), [(64, 128, 2), (32, 128, 1), (16, 32, 3), (20, 64, 8)])
def test_sizes(heads: int, dim: int, next_n: int) -> None:
    agrees(paged.make_call([130, 3, 70], next_n, heads, dim), 131, True, workers=2)


def test_a_request_without_tiles_between_two_others() -> None:
    """A worker that reads and writes shared memory for it alone met no barrier in Triton 3.5.1."""
    agrees(paged.make_call([130, 3, 70], 8, 20, 64), 131, False, workers=1)


def test_schedule() -> None:
    lens = torch.tensor([300, 0, 129, 5, 70000] * 60, dtype=torch.int32)
    schedule = torch.full((21, 2), -1, dtype=torch.int32)
    execute(classic.prepare_schedule(lens, schedule), [schedule])
    assert torch.equal(schedule, reference.make_schedule(lens, 20))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz], ids=str)
def test_write_and_gather(dtype: torch.dtype) -> None:
    call = paged.make_call([70, 5])
    slots = torch.arange(20) * 5 - 3
    k = torch.randn(20, 32, generator=torch.Generator().manual_seed(1)).bfloat16()
    caches = [call.kv_cache.contiguous().clone() for _ in range(2)]
    cache_reference.write(k, caches[0], slots, dtype=dtype, scale_format="ue8m0")
    execute(cache_classic.prepare_write(k, caches[1], slots, dtype=dtype, scale_format="ue8m0"), [])
    assert torch.equal(*caches)

    gathered = [(torch.ones(80, 32).to(dtype), torch.ones(80)) for _ in range(2)]
    cache_reference.gather(caches[0], call.block_table, call.context_lens, *gathered[0])
    execute(cache_classic.prepare_gather(caches[0], call.block_table, call.context_lens, *gathered[1]), list(gathered[1]))
    for one, other in zip(*gathered, strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_blocks_in_use_are_copied_out_of_tiles():
    cache = torch.randint(0, 256, (5, 32, 1, 132), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    table = torch.tensor([[3, 1, -1], [4, 2**30, 7]], dtype=torch.int32)
    lens = torch.tensor([[1, 33], [32, 0]], dtype=torch.int32)
    flat, copied = torch.empty_like(cache), torch.full_like(cache, 0xA5)
    unshuffle_all(cache, flat)
    execute(dropin_classic.prepare(cache, table, lens, 100, copied), [])
    assert torch.equal(copied[[1, 3, 4]], flat[[1, 3, 4]])
    assert (copied[[0, 2]] == 0xA5).all()
