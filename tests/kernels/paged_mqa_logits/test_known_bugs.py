"""Bugs of paged MQA logits that other implementations shipped, by their number in docs/known-bugs.md.

What only a compiler shows of 3 and 12 is in test_compile.py, what only a GPU shows of 5 in tests/gpu.
"""

import mmap
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule
from capgate.kernels.paged_mqa_logits.api import describe
from capgate.kernels.paged_mqa_logits.operands import Inputs
from support import paged


def in_sparse_memory(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """A copy with these strides whose first element lies in the middle of 32 GiB that are mapped and never touched.

    An offset that wraps to negative reads zeros, or writes where nobody looks: the logits are wrong, the process lives.
    """
    noreserve = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on
    memory = mmap.mmap(-1, 2**35, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, strides, flat.numel() // 2).copy_(tensor)


@pytest.mark.parametrize("block", [1, 64])
def test_bug_5_cache_offsets_pass_32_bits(variant: str, block: int) -> None:
    """5: 32-bit offset overflow; here blocks so far apart that every one but the first lies past 2**31 bytes."""
    call = paged.make_call([block + 1, 1], block=block)
    blocks = call.kv_cache.shape[0]
    stride = 3 * 2**31 // blocks // 4 * 4 + 2**31 // (blocks - 1) // 4 * 4
    strides = (stride, *call.kv_cache.stride()[1:])
    cache = in_sparse_memory(call.kv_cache, strides)
    assert (blocks - 1) * stride > 2**32
    answer = paged.formula(call, block + 1)
    out = torch.full_like(answer.logits, 7.0, dtype=torch.float32)
    fp8_paged_mqa_logits(*call._replace(kv_cache=cache), max_context_len=block + 1, out=out, variant=variant)
    assert (out[~answer.inside] == 7).all()
    paged.judge.agree(out[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize("dimension", [0, 1], ids=["rows", "columns"])
def test_bug_5_output_offsets_pass_32_bits(variant: str, dimension: int, clean_logits: bool) -> None:
    """5: The same of the output, which is 2 GiB at 512 rows of 2**20 cells."""
    call = paged.make_call([3, 0, 70], 2)
    answer = paged.formula(call, 80)
    filled = torch.full((6, 80), 7.0)
    step = 3 * 2**30 // (filled.shape[dimension] - 1)
    strides = (step, 1) if dimension == 0 else (1, step)
    out = in_sparse_memory(filled, strides)
    fp8_paged_mqa_logits(*call, max_context_len=80, out=out, clean_logits=clean_logits, variant=variant)
    assert (out[~answer.inside] == (float("-inf") if clean_logits else 7)).all()
    paged.judge.agree(out[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])


def test_bug_7_empty_requests_anywhere_in_the_batch(variant: str) -> None:
    """7: Empty windows, all rows empty, no rows: a request without keys takes no work and shifts nobody else's."""
    for lens in ([0, 5, 0, 0, 70, 0], [0, 0, 130], [130, 0, 0], [0], [1]):
        for clean_logits in (True, False):
            paged.check(paged.make_call(lens), variant, 131, clean_logits=clean_logits)


@pytest.mark.parametrize("heads", [1, 3, 17, 48, 100, 127])
def test_bug_8_heads_that_are_no_power_of_two(variant: str, heads: int) -> None:
    """8: Head counts that are not a power of two."""
    paged.check(paged.make_call([70, 5], 2, heads), variant, 70)


def test_bug_9_rows_are_padded(variant: str) -> None:
    """9: A caller that assumes stride(0) == N."""
    logits = fp8_paged_mqa_logits(*paged.make_call([5, 70], 2), max_context_len=300, variant=variant)
    assert (logits.shape, logits.stride()) == ((4, 300), (512, 1))


@pytest.mark.usefixtures("interpreter")
def test_bug_12_any_number_of_compute_units_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """12: CU count hard-coded. The call's own schedule has as many workers as the device can hold."""
    from capgate.kernels.common.schedule import classic as schedules
    from capgate.kernels.common.schedule import plan

    call, logits, workers = paged.make_call([300, 0, 7, 260]), [], []
    new_schedule = schedules.new_schedule

    def counted(lens: torch.Tensor, count: int, *more: Any, **options: Any) -> Any:
        workers.append(count)
        return new_schedule(lens, count, *more, **options)

    monkeypatch.setattr(plan, "new_schedule", counted)
    for count in (1, 2, 30):
        monkeypatch.setattr(schedules, "multiprocessors", lambda device, count=count: count)
        logits.append(paged.check(call, "classic", 300, clean_logits=True).view(torch.int32))
    assert len(set(workers)) == 3
    assert all(torch.equal(other, logits[0]) for other in logits)


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
@pytest.mark.parametrize("length", [1, 63, 64, 65, 127, 128, 129, 200, 256])
def test_bug_11_a_full_row_writes_nothing_past_its_end(variant: str, length: int, clean_logits: bool) -> None:
    """11: Writes past the end when context_len == max_context_len. Guard cells lie between the rows and round the output."""
    call = paged.make_call([length, length], 2)
    for gap in (0, 1, 300):
        out = paged.judge.sentinels(4, length, gap=gap, offset=300)
        paged.check(call, variant, length, clean_logits=clean_logits, out=out)


@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
def test_bug_11_lengths_past_the_output_and_the_table_are_cut(variant: str, clean_logits: bool) -> None:
    """11: So do lengths that exceed max_context_len, or the room that the table has."""
    call = paged.make_call([200, 64, 130], spare_entries=0)
    for columns in (1, 100, 129, 200):
        paged.check(call, variant, columns, clean_logits=clean_logits)
    longer = call._replace(context_lens=torch.tensor([2**31 - 1, 64, 130], dtype=torch.int32))
    full = longer._replace(kv_cache=judgeable(longer))
    paged.check(full, variant, 1000, clean_logits=clean_logits)


def judgeable(call) -> torch.Tensor:
    """The call's cache with zeros for bytes that are no key's, which the longer length makes visible."""
    cache = call.kv_cache.clone()
    memory = paged.judge.storage_of(cache, torch.uint8)
    memory[memory == 0xFF] = 0
    return cache


def test_bug_11_rows_from_512_on_are_written_at_stride_2_to_the_20(variant: str) -> None:
    """11: Rows >= 512 silently unwritten at stride 2**20: element 2**29 is byte 2**31."""
    call = paged.make_call([2] * 130, 4, 1, block=16)
    answer = paged.formula(call, 2)
    out = in_sparse_memory(torch.full((520, 2), 7.0), (2**20, 1))
    fp8_paged_mqa_logits(*call, max_context_len=2, out=out, variant=variant)
    assert (out[~answer.inside] == 7).all()
    paged.judge.agree(out[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])


def test_bug_11_blocks_past_2142_are_read_at_a_stride_of_1002240_bytes(variant: str) -> None:
    """11: Logits exactly 0.0 from block 2143 on: 2143 * 1,002,240 bytes is 2**31."""
    call = paged.make_call([200])
    blocks, stride, far = call.kv_cache.shape[0], 1_002_240, 2143
    assert (far - 1) * stride < 2**31 <= far * stride
    strides = (stride, *call.kv_cache.stride()[1:])
    empty = in_sparse_memory(call.kv_cache[:0], strides)
    cache = empty.as_strided((far + blocks, *call.kv_cache.shape[1:]), strides)
    cache[far:] = call.kv_cache
    used = call.block_table < blocks
    table = torch.where(used & (call.block_table >= 0), call.block_table + far, call.block_table)
    answer = paged.formula(call, 200)
    moved = call._replace(kv_cache=cache, block_table=table)
    out = fp8_paged_mqa_logits(*moved, max_context_len=200, variant=variant)
    assert out.count_nonzero() == 200
    paged.judge.agree(out, answer.logits, answer.magnitude)


@pytest.mark.parametrize("block", [1, 16, 32, 64, 128])
def test_bug_11_a_blocks_scales_lie_behind_all_of_its_keys(variant: str, block: int) -> None:
    """11: Block size > 1 without the preshuffled layout was wrong. Here from the bytes: key j is j + 1 at one dimension."""
    dim, count = 32, 2 * block + (block > 1)
    cache = torch.zeros(3, block * (dim + 4), dtype=torch.uint8)
    position = torch.arange(3 * block).reshape(3, block)
    one = torch.tensor(1.0).to(torch.float8_e4m3fn).view(torch.uint8)
    cache[:, : block * dim].view(3, block, dim)[:, :, 7] = one
    cache[:, block * dim :].copy_((position + 1).float().view(torch.uint8).flatten(1))
    q, order = torch.ones(1, 1, 1, dim).to(torch.float8_e4m3fn), [2, 0, 1]
    table, lens = torch.tensor([order], dtype=torch.int32), torch.tensor([count], dtype=torch.int32)
    kv_cache = cache.view(3, block, 1, dim + 4)
    logits = fp8_paged_mqa_logits(q, kv_cache, torch.ones(1, 1), lens, table, max_context_len=count, variant=variant)
    assert torch.equal(logits[0], (position[order].flatten()[:count] + 1).float())


@pytest.mark.parametrize("spare", [0, 1, 40])
def test_bug_11_the_table_past_the_context_is_not_looked_at(variant: str, spare: int) -> None:
    """Tables are reused between requests: past the context they hold what an earlier request left, or nothing at all."""
    for block in (1, 16, 64, 128):
        paged.check(paged.make_call([65, 1, 128, 0], block=block, spare_entries=spare), variant, 130)


@pytest.mark.usefixtures("interpreter")
def test_bug_4_e4m3fn_keeps_its_value_where_the_matrix_unit_reads_fnuz() -> None:
    """4: gfx942 reads e4m3fn bytes at half their value and -0 as NaN. What its launch converts, run in the interpreter."""
    if not compat.capabilities("cpu").interpreter_fp8_fnuz:
        pytest.skip(compat.capabilities("cpu").why("interpreter_fp8_fnuz"))
    from capgate.kernels.paged_mqa_logits import classic

    call, out = paged.make_call([20, 70]), torch.empty(2, 70)
    inputs = Inputs(*call, paged_mqa_schedule(call.context_lens, 64, 3))
    problem = describe(inputs, True)
    gfx942 = problem._replace(device=compat.capabilities("hip:gfx942").target)
    classic.kernel.launch(gfx942, inputs, out, clean_logits=True)
    answer = paged.formula(call, 70)
    paged.judge.agree(out[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
