"""The benchmark's workloads: their shapes, what they count, and how other libraries are called with them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from capgate.kernels import paged_mqa_schedule, paged_mqa_workers
from capgate.kernels.tools.bench.ceilings import Ceilings
from capgate.kernels.tools.bench.other_libraries import PEERS
from capgate.kernels.tools.workloads.catalogue import SMALL, WORKLOADS
from capgate.kernels.tools.workloads.decode import Decode, around, given
from capgate.kernels.tools.workloads.prefill import causal, compressed_prefill, packed, prompts

CPU, FN = torch.device("cpu"), torch.float8_e4m3fn


def test_the_floor_is_the_slower_of_operations_and_bytes():
    batch = replace(WORKLOADS["f"], rows=2, keys=64, windows=causal(2, 64)).make(CPU, FN)
    assert batch.flops == 2 * 64 * 128 * (63 + 64)
    bytes_ = 2 * 64 * 128 + 64 * 128 + 64 * 4 + 2 * 64 * 4 + 2 * 2 * 4 + 4 * (63 + 64)
    assert batch.least_bytes(clean_logits=False) == bytes_
    assert Ceilings(flops=batch.flops, copy=2 * bytes_, read=1).floor_ms(batch.flops, bytes_, "copy") == 1000
    assert Ceilings(flops=4 * batch.flops, copy=1, read=bytes_ / 2).floor_ms(batch.flops, bytes_, "read") == 2000


def test_peers_are_called_as_their_libraries_want_it():
    batch = replace(WORKLOADS["f"], rows=2, keys=64, windows=causal(2, 64), max_window=16).make(CPU, FN)

    def fp8_mqa_logits(q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end, clean_logits=True, max_seqlen_k=0):
        return q, kv, cu_seq_len_k_end, clean_logits, max_seqlen_k

    module, peers = SimpleNamespace(fp8_mqa_logits=fp8_mqa_logits), PEERS["fp8_mqa_logits"]
    q, kv, ends, clean_logits, max_seqlen_k = peers["deep_gemm"].bind(module, batch, False)()
    assert (q is batch.q, kv == (batch.k, batch.k_scale), ends is batch.ends) == (True, True, True)
    assert (clean_logits, max_seqlen_k) == (False, 16)
    assert peers["aiter"].bind(module, batch, False) is None


def test_peers_take_a_paged_cache_as_their_libraries_want_it():
    batch = SMALL["decode-8k"].make(CPU, FN)

    def fp8_paged_mqa_logits(q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len, clean_logits):
        return q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len, clean_logits

    def metadata(context_lens, block_kv, num_sms):
        return context_lens is batch.context_lens, block_kv, num_sms

    module = SimpleNamespace(fp8_paged_mqa_logits=fp8_paged_mqa_logits, get_paged_mqa_logits_metadata=metadata)
    call = PEERS["fp8_paged_mqa_logits"]["deep_gemm"].bind(module, batch, True)
    *operands, schedule, columns, clean_logits = call()
    assert all(given is own for given, own in zip(operands, batch.operands, strict=True))
    assert (schedule, columns, clean_logits) == ((True, 64, 1), batch.max_context_len, True)


def test_a_device_read_reads_everything(interpreter):
    from capgate.kernels.tools.bench import memory_read

    source = torch.randint(0, 1000, (memory_read.BYTES // 4 * 3,), dtype=torch.int32)
    assert memory_read.prepare(source)().tolist() == source.view(3, -1).sum(1).tolist()


@pytest.mark.parametrize(
    ("name", "cells"), [("a", 4096 * 4097 // 2), ("d1", 16 * 1024 * 1025 // 2), ("f", 64 * 8192 - 63 * 32)]
)
def test_workloads_have_the_published_number_of_cells(name, cells):
    starts, ends = WORKLOADS[name].windows()
    assert int((ends - starts).sum()) == cells


def test_packed_requests_stay_among_their_own_keys():
    starts, ends = packed(3, 2, 5)()
    assert starts.tolist() == [0, 0, 5, 5, 10, 10]
    assert ends.tolist() == [4, 5, 9, 10, 14, 15]


def test_a_prompt_with_one_key_per_four_tokens():
    starts, ends = compressed_prefill((6, 9))()
    assert starts.tolist() == [0] * 6 + [1] * 9
    assert (ends - starts).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_a_batch_counts_its_work():
    batch = prompts((8, 4)).make(CPU, FN)
    cells = 0 + 0 + 0 + 1 + 1 + 1 + 1 + 2 + 0 + 0 + 0 + 1
    assert batch.cells == cells
    assert batch.flops == 2 * 64 * 128 * cells
    operands = 12 * 64 * 128 + 3 * 128 + 3 * 4 + 12 * 64 * 4 + 2 * 12 * 4
    assert batch.least_bytes(clean_logits=False) == operands + 4 * cells
    assert batch.least_bytes(clean_logits=True) == operands + 4 * 12 * 3


def test_contexts_are_within_their_range_and_the_same_in_every_run():
    lens = around(8192, 256)()
    assert (len(lens), lens.dtype) == (256, torch.int32)
    assert int(lens.min()) >= 0.7 * 8192
    assert int(lens.max()) <= 1.3 * 8192
    assert abs(float(lens.float().mean()) / 8192 - 1) < 0.05
    assert torch.equal(lens, around(8192, 256)())


def test_a_skewed_batch_has_the_keys_of_the_even_one():
    skewed, even = (WORKLOADS[f"decode-{name}"].lens() for name in ("skewed", "even"))
    assert len(skewed) == len(even) == 256
    assert int(skewed.sum()) == int(even.sum())
    assert (sorted(set(skewed.tolist())), len(set(even.tolist()))) == ([512, 65536], 1)


def test_decode_workloads_cover_the_published_cases():
    shapes = {(w.requests, w.next_n, w.heads) for w in WORKLOADS.values() if isinstance(w, Decode)}
    folded = {(256, next_n, 64) for next_n in (4, 6)}  # rows of a request that share its keys
    assert {(256, next_n, heads) for next_n in (1, 2) for heads in (32, 64)} | {(1, 1, 64), (8, 1, 64)} | folded == shapes


def test_a_decode_batch_counts_its_work():
    batch = Decode("", "", 3, given([1, 64, 130]), heads=4, next_n=2, dim=32).make(CPU, FN)
    rows = 0 + 1 + 63 + 64 + 129 + 130  # a draft's row sees one key less
    assert batch.flops == 2 * 4 * 32 * rows
    keys, entries = 1 + 64 + 130, 1 + 1 + 3
    operands = 6 * 4 * 32 + 6 * 4 * 4 + 3 * 4 + entries * 4 + keys * 36
    assert batch.least_bytes(clean_logits=False) == operands + 4 * rows
    assert batch.least_bytes(clean_logits=True) == operands + 4 * 6 * 130


def test_a_decode_batch_scatters_its_blocks_and_shares_none():
    batch = Decode("", "", 3, given([1, 64, 700]), heads=4, dim=32).make(CPU, FN)
    used = [*batch.block_table[0, :1].tolist(), *batch.block_table[1, :1].tolist(), *batch.block_table[2].tolist()]
    assert sorted(used) == list(range(13))
    assert used != sorted(used)


def test_decode_is_timed_with_the_schedule_of_its_variant(variant):
    """A call with that schedule gives the logits of the call that makes its own."""
    batch = SMALL["decode-skewed"].make(CPU, FN)
    out = batch.output().fill_(-1.0)
    timed = batch.call(variant, False, out)
    schedule = timed.keywords["schedule"]
    workers = paged_mqa_workers(batch.q, batch.kv_cache, variant=variant)
    assert torch.equal(schedule, paged_mqa_schedule(batch.context_lens, 64, workers))
    timed()
    own = torch.full_like(out, -1.0)
    timed.func(*timed.args, **{**timed.keywords, "schedule": None, "out": own})
    assert torch.equal(out, own)
