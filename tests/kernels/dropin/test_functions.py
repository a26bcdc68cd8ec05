"""The drop-ins' functions themselves: signatures, and what upstream's own tests do not ask."""

import inspect
from typing import Any

import pytest
import torch

from capgate.kernels.dropin import DROPINS, aiter, deep_gemm, flashinfer, sglang, vllm, vllm_rocm  # noqa: A004 - a library's name
from support import judge, upstream

FN = torch.float8_e4m3fn

DENSE = "q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end"
DEEP_GEMM_PAGED = "q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len"
# As in the libraries' sources. Callers write q, kv_cache, block_tables for some of these names.
SIGNATURES = {
    aiter.fp8_mqa_logits: "(Q, KV, kv_scales, weights, cu_starts, cu_ends, clean_logits=True)",
    aiter.deepgemm_fp8_paged_mqa_logits: (
        "(q_fp8, kv_cache, weights, out_logits, context_lens, kv_indices, max_model_len, Preshuffle=False, KVBlockSize=1, "
        "ChunkK=256, TotalCuCount=None, WavePerEU=2, VarCtxSchedule=None)"
    ),
    **{
        function: upstream.MXFP4[function.__module__.rpartition(".")[2]].removeprefix("paged_mxfp4_mqa_logits")
        for function in aiter.GENERATIONS["paged_mxfp4_mqa_logits"]
    },
    aiter.flydsl_pa_mqa_logits_fp4: upstream.FLYDSL.removeprefix("flydsl_pa_mqa_logits_fp4"),
    aiter.flydsl_pa_mqa_logits_fp4_prefill: upstream.FLYDSL_PREFILL.removeprefix("flydsl_pa_mqa_logits_fp4_prefill"),
    aiter.top_k_per_row_prefill: (
        "(logits, rowStarts, rowEnds, indices, values, numRows, stride0, stride1, k=2048, stable=False)"
    ),
    aiter.top_k_per_row_decode: "(logits, next_n, seqLens, indices, numRows, stride0, stride1, k=2048, stable=False)",
    deep_gemm.fp8_mqa_logits: f"({DENSE}, clean_logits=True, max_seqlen_k=0)",
    deep_gemm.sgl.fp8_mqa_logits: "(q, kv, weights, ks, ke, clean_logits=False, max_seqlen_k=0)",
    deep_gemm.fp8_fp4_mqa_logits: f"({DENSE}, max_seqlen_k, schedule_meta=None)",
    deep_gemm.before_2_8.fp8_fp4_mqa_logits: (
        f"({DENSE}, clean_logits=True, max_seqlen_k=0, logits_dtype=torch.float32, schedule_meta=None)"
    ),
    deep_gemm.get_mqa_logits_metadata: "(cu_seq_len_k_start, cu_seq_len_k_end, num_kv_tokens, num_heads)",
    deep_gemm.fp8_paged_mqa_logits: f"({DEEP_GEMM_PAGED}, clean_logits=False, indices=None)",
    deep_gemm.fp8_fp4_paged_mqa_logits: f"({DEEP_GEMM_PAGED}, indices=None)",
    deep_gemm.before_2_8.fp8_fp4_paged_mqa_logits: (
        f"({DEEP_GEMM_PAGED}, clean_logits=False, logits_dtype=torch.float32, indices=None)"
    ),
    deep_gemm.get_sparse_mqa_logits_metadata: (
        "(cu_seq_len_k_start, cu_seq_len_k_end, num_kv_tokens, sparse_kv_block_indices, qk_dtype, sparse_block_kv, "
        "use_unaligned_ks=False)"
    ),
    deep_gemm.fp8_fp4_sparse_mqa_logits: (
        "(q, kv, weights, metadata, num_max_sparse_blocks, sparse_block_kv, use_unaligned_ks=False)"
    ),
    deep_gemm.get_paged_sparse_mqa_logits_metadata: (
        "(context_lens, block_table, indices, page_kv, sparse_kv_block_indices, qk_dtype, sparse_block_kv)"
    ),
    deep_gemm.fp8_fp4_paged_sparse_mqa_logits: ("(q, kv_cache, weights, metadata, num_max_sparse_blocks, sparse_block_kv)"),
    deep_gemm.get_paged_mqa_logits_metadata: "(context_lens, block_kv, num_sms, indices=None)",
    flashinfer.top_k_page_table_transform: (
        "(input, src_page_table, lengths, k, row_to_batch=None, deterministic=False, tie_break=0, dsa_graph_safe=False, "
        "row_starts=None, page_table_row_starts=None, *, page_size=1, out=None, out_raw_indices=None)"
    ),
    flashinfer.top_k_ragged_transform: (
        "(input, offsets, lengths, k, deterministic=False, tie_break=0, dsa_graph_safe=False, row_starts=None)"
    ),
    sglang.topk_transform_paged: ("(scores, seq_lens, page_tables, out_page_indices, page_size, out_raw_indices=None)"),
    sglang.topk_transform_paged_v2: (
        "(scores, seq_lens, page_tables, out_page_indices, page_size, metadata, out_raw_indices=None)"
    ),
    sglang.topk_transform_ragged_v2: "(scores, seq_lens, *, out_offsets, out_indices, row_starts=None)",
    sglang.fast_topk_v2: "(score, lengths, topk, row_starts=None)",
    sglang.fast_topk_transform_fused: "(score, lengths, page_table_size_1, cu_seqlens_q, topk, row_starts=None)",
    sglang.fast_topk_transform_ragged_fused: "(score, lengths, topk_indices_offset, topk, row_starts=None)",
    vllm.persistent_topk: "(logits, lengths, output, workspace, k, max_seq_len)",
    vllm.cooperative_topk: "(logits, lengths, output, workspace, k, max_seq_len)",
    vllm.top_k_per_row_prefill: "(logits, rowStarts, rowEnds, indices, numRows, stride0, stride1, topK)",
    vllm.top_k_per_row_decode: "(logits, next_n, seq_lens, indices, numRows, stride0, stride1, topK)",
    aiter.indexer_k_quant_and_cache: "(k, kv_cache, slot_mapping, quant_block_size, scale_fmt, preshuffle=False)",
    aiter.cp_gather_indexer_k_quant_cache: ("(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens, preshuffle=False)"),
    vllm.indexer_k_quant_and_cache: "(k, kv_cache, slot_mapping, quant_block_size, scale_fmt)",
    vllm.cp_gather_indexer_k_quant_cache: "(kv_cache, dst_k, dst_scale, block_table, cu_seq_lens)",
    vllm_rocm.indexer_k_quant_and_cache_triton: (
        "(k, kv_cache, slot_mapping, quant_block_size, scale_fmt, block_tile_size=16, head_tile_size=16)"
    ),
    vllm_rocm.cp_gather_indexer_k_quant_cache_triton: (
        "(k_cache, k_fp8, k_fp8_scale, block_table, cu_seqlen, token_to_seq, block_tile_size=16, head_tile_size=16, "
        "cache_layout=None)"
    ),
    vllm_rocm.rocm_fp8_mqa_logits: "(q, kv, weights, cu_seqlen_ks, cu_seqlen_ke)",
    vllm_rocm.rocm_fp8_paged_mqa_logits: (
        "(q_fp8, kv_cache_fp8, weights, context_lens, block_tables, schedule_metadata, max_model_len, *, compress_ratio=1)"
    ),
}


def test_signatures() -> None:
    """Names, order, kinds and defaults; ours have annotations on top."""
    found = {}
    for function in SIGNATURES:
        signature = inspect.signature(function)
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
        found[function] = str(inspect.Signature(bare))
    assert found == SIGNATURES
    named = {(name, function) for name, families in DROPINS.items() for family in families for function in family.names}
    assert named == {(function.__module__.split(".")[3], function.__name__) for function in SIGNATURES}


@pytest.mark.parametrize("windows", ["packed", "ragged", "extreme", "empty"])
@pytest.mark.parametrize("clean_logits", [True, False])
def test_every_dense_function_gives_the_same_logits(windows: str, clean_logits: bool) -> None:
    """With windows that no upstream test has, and scales in every shape that callers pass."""
    call = judge.make_call(9, 70, 32, 64, windows)
    q, k, scale, weights, starts, ends = call
    answer = judge.formula(call)
    column = scale[:, None]
    every = [
        aiter.fp8_mqa_logits(q, k, scale, weights, starts, ends, clean_logits),
        aiter.fp8_mqa_logits(q, k, column, weights, starts, ends, clean_logits=clean_logits),
        deep_gemm.fp8_mqa_logits(q, (k, scale), weights, starts, ends, clean_logits),
        vllm_rocm.rocm_fp8_mqa_logits(q, (k, column), weights, starts, ends),
        vllm_rocm.rocm_fp8_mqa_logits(q, [k, scale], weights, starts, ends),
    ]
    for number, logits in enumerate(every):
        judge.agree(logits[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
        if clean_logits and number < 3:
            assert torch.equal(logits == float("-inf"), ~answer.inside)
    assert [logits.stride(0) for logits in every] == [256, 256, 512, 256, 256]


def test_one_key() -> None:
    """aiter's callers squeeze [1, 1] to a 0-d tensor."""
    q, k, scale, weights, starts, ends = judge.make_call(3, 1, 32, 64, "full")
    expected = aiter.fp8_mqa_logits(q, k, scale, weights, starts, ends)
    assert torch.equal(aiter.fp8_mqa_logits(q, k, scale.squeeze(), weights, starts, ends), expected)
    assert torch.equal(vllm_rocm.rocm_fp8_mqa_logits(q, (k, scale[:, None]), weights, starts, ends), expected)


@pytest.mark.parametrize("function", [deep_gemm.fp8_mqa_logits, vllm_rocm.rocm_fp8_mqa_logits])
@pytest.mark.parametrize("kv", [torch.zeros(4, 32), (torch.zeros(4, 32),), (1, 2, 3)], ids=["keys", "one", "three"])
def test_kv_is_a_pair(function: Any, kv: Any) -> None:
    with pytest.raises(TypeError, match=r"kv: got .*, needs a pair of tensors"):
        function(torch.zeros(1, 4, 32).to(FN), kv, torch.zeros(1, 4), torch.zeros(1).int(), torch.ones(1).int())
