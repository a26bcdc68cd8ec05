"""vLLM's sparse indexer as a step of the engine takes it: the metadata builder, then the op's prefill and decode."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engines import stubs
from support import judge, paged

stubs.only_in_the_session_of("vllm")
stubs.for_vllm()

import vllm.model_executor.layers.sparse_attn_indexer as layer  # noqa: E402 - after the stubs
from vllm.config import CUDAGraphMode  # noqa: E402
from vllm.v1.attention.backend import CommonAttentionMetadata  # noqa: E402
from vllm.v1.attention.backends.mla import indexer  # noqa: E402
from vllm.v1.worker.workspace import init_workspace_manager  # noqa: E402

from capgate.kernels import dropin, quantize_keys_to_cache  # noqa: E402

HEADS, DIM, BLOCK, TOP_K, LONGEST = 32, 128, 64, 24, 256


class Step:
    """One step of the engine: requests with ``queries`` new tokens each, which end their ``lens`` tokens.

    drafts : tokens that the engine speculates on beyond one
    """

    def __init__(self, lens: list[int], queries: list[int], drafts: int = 0) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens, requests = sum(queries), len(lens)
        width = LONGEST // BLOCK
        blocks = torch.randperm(requests * width, generator=generator).int()
        self.lens, self.queries, self.table = lens, queries, blocks.view(requests, width)
        self.q = torch.randn(tokens, HEADS, DIM, generator=generator).to(torch.float8_e4m3fn)
        self.weights = torch.randn(tokens, HEADS, generator=generator)
        self.k = torch.randn(tokens, DIM, generator=generator).bfloat16()  # of the new tokens
        self.cache = torch.zeros(requests * width, BLOCK, DIM + 4, dtype=torch.uint8)
        everything = torch.arange(requests * width * BLOCK)
        keys = torch.randn(len(everything), DIM, generator=generator).bfloat16()
        quantize_keys_to_cache(keys, self.cache.unsqueeze(-2), everything)
        starts = torch.tensor([0, *queries]).cumsum(0).int()
        position = torch.cat([torch.arange(length - count, length) for length, count in zip(lens, queries, strict=True)])
        self.request = torch.repeat_interleave(torch.arange(requests), torch.tensor(queries))
        self.seen = position + 1
        slots = self.table[self.request, position // BLOCK].long() * BLOCK + position % BLOCK
        config = _config(drafts)
        spec = SimpleNamespace(num_states=BLOCK, block_size=BLOCK)
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

    def run(self, monkeypatch: pytest.MonkeyPatch, topk_backend: str) -> None:
        """The op, as it runs outside of captured graphs."""
        context = SimpleNamespace(attn_metadata={"indexer": self.metadata}, cudagraph_runtime_mode=CUDAGraphMode.NONE)
        monkeypatch.setattr(layer, "get_forward_context", lambda: context)
        layer.sparse_attn_indexer(
            hidden_states=self.q,
            k_cache_prefix="indexer",
            kv_cache=self.cache,
            q_quant=self.q,
            q_scale=None,
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
            use_pcp=False,
            pcp_shard_decode_requests=False,
            dense_mha_metadata_layer_name="",
            topk_backend=topk_backend,
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


@pytest.fixture(autouse=True)
def _installed() -> Iterator[None]:
    init_workspace_manager(torch.device("cpu"))
    for name in ("deep_gemm", "vllm"):
        dropin.install(name)
    yield
    for name in ("deep_gemm", "vllm"):
        dropin.uninstall(name)


def test_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing the cache, gathering it, logits and selection: nothing of the compiled extensions is reached."""
    step = Step([150, 9, 64], [6, 9, 3])
    assert (step.metadata.num_prefills, step.metadata.num_decodes) == (3, 0)
    step.run(monkeypatch, "per_row")
    step.judge()


@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_decode(monkeypatch: pytest.MonkeyPatch, drafts: int) -> None:
    """Drafts of 1 and 3 are native on an sm90, 2 is flattened."""
    step = Step([150, 20, 65], [1 + drafts] * 3, drafts)
    assert (step.metadata.num_prefills, step.metadata.num_decodes) == (0, 3)
    step.run(monkeypatch, "per_row")
    step.judge()


def test_prefill_and_decode_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step([150, 31, 70], [1, 1, 8])
    assert (step.metadata.num_prefills, step.metadata.num_decodes) == (1, 2)
    step.run(monkeypatch, "per_row")
    step.judge()


def test_the_schedule_of_a_step_is_ours() -> None:
    """vLLM copies it into a buffer that every layer reads."""
    schedule = Step([150, 20, 65], [1, 1, 1]).metadata.decode.schedule_metadata
    assert schedule.shape == (stubs.SMS + 1, 2)
    assert schedule[-1].tolist() == [3, 0]
    assert schedule[-4:].tolist() == [[0, 0], [1, 0], [2, 0], [3, 0]]
