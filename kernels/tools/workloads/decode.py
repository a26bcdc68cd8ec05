"""Workloads of fp8_paged_mqa_logits: batches of requests with the keys that each has in a paged cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch

from ...common.logits import empty_logits
from ...common.reference import row_lengths
from ...key_cache import quantize_keys_to_cache
from ...paged_mqa_logits import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers
from ...paged_mqa_logits.operation import operation
from ...quantize import quantize_queries
from .batch import Call
from .paging import scattered_table

QUANTIZED_AT_A_TIME = 2**20  # keys: 16 million of them would be 4 GB of activations

Lens = Callable[[], torch.Tensor]


class DecodeBatch(NamedTuple):
    """The operands of one call, in the order of the operation's arguments, and the columns of its output."""

    q: torch.Tensor
    kv_cache: torch.Tensor
    weights: torch.Tensor
    context_lens: torch.Tensor
    block_table: torch.Tensor
    max_context_len: int

    @property
    def operands(self) -> tuple[torch.Tensor, ...]:
        """The tensors that the function takes by position."""
        return self[:5]

    @property
    def seen(self) -> torch.Tensor:
        """How many keys each row sees, int64 [B, next_n]."""
        return row_lengths(self.context_lens, self.q.shape[1]).clamp(0, self.max_context_len)

    @property
    def flops(self) -> int:
        """Two for each of the D products of a head's dot, over the keys that a row sees."""
        return int(2 * self.q.shape[2] * self.q.shape[3] * self.seen.sum())

    def least_bytes(self, clean_logits: bool) -> int:
        """The fewest bytes a call moves.

        Every key that a request's longest row sees, with its scale, and the table's entry for every block of them, once;
        queries, weights and lengths once; every cell that has to be written once.
        """
        longest, (_, block, _, width) = self.seen.amax(1), self.kv_cache.shape
        read = int(longest.sum()) * width + 4 * int(((longest + block - 1) // block).sum())
        read += sum(tensor.numel() * tensor.itemsize for tensor in (self.q, self.weights, self.context_lens))
        written = self.seen.numel() * self.max_context_len if clean_logits else int(self.seen.sum())
        return int(read + 4 * written)

    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first column of the output that each row sees, and the first one that it does not see any more, [B * next_n]."""
        end = self.seen.flatten()
        return torch.zeros_like(end), end

    def output(self) -> torch.Tensor:
        """A new output, which the calls of all variants may share."""
        return empty_logits((self.weights.shape[0], self.max_context_len), self.q.device)

    def prepare(self, variant: str | None, clean_logits: bool) -> Callable[[], torch.Tensor]:
        """Make the schedule, with as many workers as the variant wants."""
        workers = paged_mqa_workers(self.q, self.kv_cache, clean_logits=clean_logits, variant=variant)
        return partial(paged_mqa_schedule, self.context_lens, self.kv_cache.shape[1], workers)

    def call(self, variant: str | None, clean_logits: bool, out: torch.Tensor) -> Call:
        """The call of one variant into ``out`` with a schedule made beforehand, as all layers of a serving step share one."""
        keywords: dict[str, Any] = {"max_context_len": self.max_context_len, "clean_logits": clean_logits, "variant": variant}
        schedule = self.prepare(variant, clean_logits)()
        return partial(fp8_paged_mqa_logits, *self.operands, schedule=schedule, out=out, **keywords)


@dataclass(frozen=True)
class Decode:
    """Requests in decode.

    requests, next_n, heads, dim : B, next_n, H and D of the operation
    lens : makes context_lens, int32 [B] on the CPU
    block : keys in a block of the cache
    columns : of the output, max_context_len; the longest context where None
    """

    name: str
    words: str
    requests: int
    lens: Lens
    heads: int = 64
    next_n: int = 1
    block: int = 64
    dim: int = 128
    columns: int | None = None

    operation: ClassVar = operation
    operations: ClassVar = (operation,)
    moves: ClassVar = "read"

    @property
    def size(self) -> str:
        return f"{self.requests}x{self.next_n}x{int(self.lens().sum()) // self.requests}"

    def facts(self) -> dict[str, int]:
        """Its sizes by name; ``keys`` and ``longest`` are of all requests and of the longest one."""
        lens = self.lens()
        sizes = {name: getattr(self, name) for name in ("requests", "next_n", "heads", "dim", "block")}
        return {**sizes, "keys": int(lens.sum()), "longest": int(lens.max())}

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> DecodeBatch:
        """Random activations, really quantised; the requests' blocks lie scattered over a cache that they fill."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)

        weights = torch.randn((self.requests, self.next_n, self.heads), generator=generator, device=device)
        q, weights = quantize_queries(normal(self.requests, self.next_n, self.heads, self.dim), weights, dtype)
        lens = self.lens().to(device)
        block_table, blocks = scattered_table(lens, self.block, generator)
        kv_cache = torch.empty((blocks, self.block, 1, self.dim + 4), dtype=torch.uint8, device=device)
        every_slot = torch.arange(blocks * self.block, device=device)
        for first in range(0, len(every_slot), QUANTIZED_AT_A_TIME):
            part = every_slot[first : first + QUANTIZED_AT_A_TIME]
            quantize_keys_to_cache(normal(len(part), self.dim), kv_cache, part, dtype=dtype, scale_format="ue8m0")
        columns = int(lens.max()) if self.columns is None else self.columns
        return DecodeBatch(q, kv_cache, weights.flatten(0, 1), lens, block_table, columns)


def around(mean: int, requests: int) -> Lens:
    """Contexts of 0.7 to 1.3 times ``mean``, uniformly and the same in every run, as DeepGEMM's test draws them."""

    def lens() -> torch.Tensor:
        generator = torch.Generator().manual_seed(mean)
        return torch.randint(7 * mean // 10, 13 * mean // 10 + 1, (requests,), generator=generator).int()

    return lens


def given(lens: Sequence[int]) -> Lens:
    """These contexts."""
    return lambda: torch.tensor(lens, dtype=torch.int32)
