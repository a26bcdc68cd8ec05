"""A step of vLLM's sparse indexer: what the engine builds for it, and the formula's judgement of what it selects.

vLLM is imported here: stubs come first.
"""

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import CUDAGraphMode
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.mla import indexer

from capgate.kernels import quantize_keys_to_cache
from support import judge, paged

HEADS, DIM, TOP_K, LONGEST = 32, 128, 24, 256


class Step:
    """One step of the engine: requests with ``queries`` new tokens each, which end their ``lens`` tokens.

    drafts : tokens that the engine speculates on beyond one
    block : keys of a block of the cache
    """

    def __init__(self, lens: list[int], queries: list[int], drafts: int = 0, block: int = 64) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens, requests = sum(queries), len(lens)
        width = LONGEST // block
        blocks = torch.randperm(requests * width, generator=generator).int()
        self.lens, self.queries, self.table = lens, queries, blocks.view(requests, width)
        self.q = torch.randn(tokens, HEADS, DIM, generator=generator).to(torch.float8_e4m3fn)
        self.weights = torch.randn(tokens, HEADS, generator=generator)
        self.k = torch.randn(tokens, DIM, generator=generator).bfloat16()  # of the new tokens
        self.cache = torch.zeros(requests * width, block, DIM + 4, dtype=torch.uint8)
        everything = torch.arange(requests * width * block)
        keys = torch.randn(len(everything), DIM, generator=generator).bfloat16()
        quantize_keys_to_cache(keys, self.cache.unsqueeze(-2), everything)
        starts = torch.tensor([0, *queries]).cumsum(0).int()
        position = torch.cat([torch.arange(length - count, length) for length, count in zip(lens, queries, strict=True)])
        self.request = torch.repeat_interleave(torch.arange(requests), torch.tensor(queries))
        self.seen = position + 1
        slots = self.table[self.request, position // block].long() * block + position % block
        config = _config(drafts)
        spec = SimpleNamespace(num_states=block, block_size=block)
        builder = indexer.DeepseekV32IndexerMetadataBuilder(
            spec, ["indexer"], config, torch.device("cpu"), block_table_width=width
        )
        self.metadata = builder.build(
            0,
            CommonAttentionMetadata(
                query_start_loc=starts,
                query_start_loc_cpu=starts,
                seq_lens=torch.tensor(lens, dtype=torch.int32),
                num_reqs=requests,
                num_actual_tokens=tokens,
                max_query_len=max(queries),
                max_seq_len=max(lens),
                block_table_tensor=self.table,
                slot_mapping=slots,
                seq_lens_cpu_upper_bound=torch.tensor(lens, dtype=torch.int32),
            ),
        )
        self.indices = torch.full((tokens, TOP_K), 7, dtype=torch.int32)

    def run(self, monkeypatch: pytest.MonkeyPatch, module: ModuleType, op: Callable[..., Any], **options: Any) -> None:
        """The op, a function of ``module``, as it runs outside of captured graphs."""
        context = SimpleNamespace(attn_metadata={"indexer": self.metadata}, cudagraph_runtime_mode=CUDAGraphMode.NONE)
        monkeypatch.setattr(module, "get_forward_context", lambda: context)
        op(
            hidden_states=self.q,
            k_cache_prefix="indexer",
            kv_cache=self.cache,
            k=self.k,
            weights=self.weights,
            quant_block_size=DIM,
            scale_fmt="ue8m0",
            topk_tokens=TOP_K,
            head_dim=DIM,
            max_model_len=LONGEST,
            total_seq_lens=1024,
            topk_indices_buffer=self.indices,
            skip_k_cache_insert=False,
            **options,
        )

    def judge(self) -> None:
        """The indices are those of the highest scores in float64, but for scores that rounding may exchange."""
        call = paged.PagedCall(
            self.q[:, None],
            self.cache.unsqueeze(-2),
            self.weights,
            self.seen.int()[:, None],
            self.table[self.request],
        )
        right = paged.formula(call, LONGEST)
        for row, found in enumerate(self.indices.tolist()):
            seen = int(self.seen[row])
            taken = [index for index in found if index >= 0]
            assert len(set(taken)) == len(taken) == min(TOP_K, seen)
            assert max(taken) < seen
            assert found == taken + [-1] * (TOP_K - len(taken))
            limit = right.logits[row, :seen].sort(descending=True).values[len(taken) - 1]
            error = judge.FLOAT32 * right.magnitude[row, :seen].max()
            assert right.logits[row, taken].min() >= limit - 2 * error


def _config(drafts: int) -> Any:
    speculative = SimpleNamespace(num_speculative_tokens=drafts, enable_adaptive_verification=False) if drafts else None
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(max_num_batched_tokens=64, max_num_seqs=8),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=1,
            tensor_parallel_size=1,
            prefill_context_parallel_size=1,
            cp_kv_cache_interleave_size=1,
        ),
        model_config=SimpleNamespace(max_model_len=LONGEST),
        attention_config=SimpleNamespace(resolve_indexer_kv_dtype=lambda kind: kind, sparse_mla_prefill_workspace_factor=5),
        compilation_config=SimpleNamespace(cudagraph_mode=None),
        speculative_config=speculative,
        num_speculative_tokens=drafts,
    )
