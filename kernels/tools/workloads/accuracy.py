"""Whether a variant finds the keys that float32 would find: recall of the top keys, and of the attention that they carry.

The activations are synthetic, in bfloat16, and the same for every format that they are quantised to. Queries and keys are
normally distributed, each with a part of one of a few topics added, which are normal themselves: as much as makes the top keys
carry most of the attention. Weights of heads are magnitudes of normal numbers, and seeds are given. A key's attention is the
softmax of the float32 logits over the row's keys, because the indexer is trained to give logits of which that is true
(DeepSeek-V3.2's report).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

from ...common.key_formats import FORMATS, SCALE_BYTES
from ...common.logits import empty_logits
from ...key_cache import quantize_keys_to_cache
from ...mqa_logits import fp8_mqa_logits
from ...mqa_logits.operation import operation as prefill_operation
from ...mx_logits import mx_mqa_logits
from ...mx_paged_logits import mx_paged_mqa_logits
from ...mx_quantization import quantize_mx_keys, quantize_mx_queries
from ...paged_mqa_logits import fp8_paged_mqa_logits
from ...paged_mqa_logits.operation import operation as decode_operation
from ...quantize import quantize_keys, quantize_queries
from .batch import sizes
from .paging import scattered_table, slots

Function = Callable[..., torch.Tensor]

TOPICS = 32
LEANING = 0.25  # of a topic's direction in a query or key of unit variance: 512 of 2048 keys then carry 83 % of the attention
BLOCK = 64
# Whose rounding an MX format has here, of those that give each 32 values a scale, queries and keys alike.
RULES = {"mxfp8": "deepgemm", "mxfp4": "vllm"}


class Recall(NamedTuple):
    """Parts between 0 and 1, means over the rows.

    keys : of float32's top keys, those that are among the variant's
    mass : of the attention that float32's top keys carry, what the variant's carry
    """

    keys: float
    mass: float


class Case(NamedTuple):
    """Rows with their float32 logits, and what writes a variant's logits of the same activations into a buffer.

    exact : [rows, columns] float32, -inf where a row does not see the key
    read_bytes : of the call's operands, each key once
    """

    call: Callable[[str, bool, torch.Tensor], object]
    exact: torch.Tensor
    read_bytes: int

    def recall(self, variant: str, clean_logits: bool, top_k: int) -> Recall:
        """What the variant's top keys have in common with float32's; every row sees at least ``top_k`` keys."""
        inside = ~self.exact.isneginf()
        logits = empty_logits((len(self.exact), self.exact.shape[1]), self.exact.device).fill_(float("inf"))
        self.call(variant, clean_logits, logits)
        if not clean_logits:
            logits = torch.where(inside, logits, float("-inf"))
        found, best = (scores.topk(top_k, dim=1).indices for scores in (logits, self.exact))
        among = torch.zeros_like(inside).scatter_(1, best, True)
        attention = self.exact.softmax(1)
        mass = attention.gather(1, found).sum(1) / attention.gather(1, best).sum(1)
        # No keys carry more than the best: more than 1 is the same keys, added up in another order.
        return Recall(float(among.gather(1, found).float().mean()), float(mass.clamp(max=1).mean()))


@dataclass(frozen=True)
class Accuracy:
    """Rows of packed prompts and of requests in decode, from bfloat16 activations.

    prompt_tokens, prompts, rows : tokens of a prompt, prompts in the batch, and rows of each that are looked at, evenly
        spaced among those that see more than ``top_k`` keys
    requests, context_tokens : in decode
    heads, dim, ratio : of the indexer, which keeps one key per ``ratio`` tokens
    """

    name: str
    words: str
    prompt_tokens: int = 8192
    prompts: int = 2
    rows: int = 256
    requests: int = 64
    context_tokens: int = 32768
    top_k: int = 512
    heads: int = 64
    dim: int = 128
    ratio: int = 4

    operations: ClassVar = (prefill_operation, decode_operation)

    def facts(self) -> dict[str, Any]:
        """Its sizes by name."""
        return sizes(self)

    def cases(self, device: torch.device, dtype: torch.dtype, key_format: str = "fp8", seed: int = 1) -> dict[str, Case]:
        """The cases by name: prefill and decode.

        dtype : of fp8 queries and keys
        key_format : of both: "fp8", "mxfp8" or "mxfp4"
        seed : of the activations; decode has the next one
        """
        return {
            "prefill": self._prefill(device, dtype, key_format, seed),
            "decode": self._decode(device, dtype, key_format, seed + 1),
        }

    def _prefill(self, device: torch.device, dtype: torch.dtype, key_format: str, seed: int) -> Case:
        keys = self.prompt_tokens // self.ratio
        first = (self.top_k + 1) * self.ratio - 1  # the first position that sees more than top_k keys
        positions = torch.linspace(first, self.prompt_tokens - 1, self.rows).long()
        seen = ((positions + 1) // self.ratio).repeat(self.prompts)
        starts = torch.arange(self.prompts).repeat_interleave(self.rows) * keys
        q, weights, k = self._activations([keys] * self.prompts, self.rows, device, seed)
        exact = _float32_logits(q, weights, k, [keys] * self.prompts, starts.tolist(), seen.to(device))

        windows = (starts.int().to(device), (starts + seen).int().to(device))
        function: Function
        queries, folded = _quantized_queries(q, weights, dtype, key_format)
        if key_format == "fp8":
            function, packed = fp8_mqa_logits, quantize_keys(k, dtype, scale_format="ue8m0")
        else:
            function, packed = mx_mqa_logits, quantize_mx_keys(k, key_format, rule=RULES[key_format])
        operands = (*queries, *packed, folded, *windows)

        def call(variant: str, clean_logits: bool, out: torch.Tensor) -> object:
            return function(*operands, clean_logits=clean_logits, out=out, variant=variant)

        return Case(call, exact, sum(operand.nbytes for operand in operands))

    def _decode(self, device: torch.device, dtype: torch.dtype, key_format: str, seed: int) -> Case:
        keys = self.context_tokens // self.ratio
        lens = torch.full((self.requests,), keys, dtype=torch.int32, device=device)
        q, weights, k = self._activations([keys] * self.requests, 1, device, seed)
        exact = _float32_logits(q, weights, k, [keys] * self.requests, [0] * self.requests, lens)

        block_table, blocks = scattered_table(lens, BLOCK, torch.Generator(device).manual_seed(3))
        width = FORMATS[key_format].key_bytes(self.dim) + SCALE_BYTES
        kv_cache = torch.zeros((blocks, BLOCK, 1, width), dtype=torch.uint8, device=device)
        places = slots(block_table, lens, BLOCK)
        function: Function
        if key_format == "fp8":
            function = fp8_paged_mqa_logits
            quantize_keys_to_cache(k, kv_cache, places, dtype=dtype, scale_format="ue8m0")
        else:
            function = mx_paged_mqa_logits
            quantize_keys_to_cache(k, kv_cache, places, key_format=key_format, rule=RULES[key_format])
        queries, folded = _quantized_queries(q[:, None], weights[:, None], dtype, key_format)
        others = (folded.flatten(0, 1), lens, block_table)

        def call(variant: str, clean_logits: bool, out: torch.Tensor) -> object:
            operands = (*queries, kv_cache, *others)
            return function(*operands, max_context_len=keys, clean_logits=clean_logits, out=out, variant=variant)

        return Case(call, exact, len(k) * width + sum(operand.nbytes for operand in (*queries, *others)))

    def _activations(
        self, keys: list[int], rows: int, device: torch.device, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [requests * rows, H, D] and keys [sum of keys, D] in bfloat16, weights [requests * rows, H] in float32."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=device)

        def topics_of(count: int) -> torch.Tensor:
            return LEANING * topics[torch.randint(TOPICS, (count,), generator=generator, device=device)]

        topics, count = normal(TOPICS, self.dim), len(keys) * rows
        q = normal(count, self.heads, self.dim) + topics_of(count)[:, None]
        k = normal(sum(keys), self.dim) + topics_of(sum(keys))
        return q.bfloat16(), normal(count, self.heads).abs(), k.bfloat16()


def _quantized_queries(
    q: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype, key_format: str
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """The queries, with scales where their format has any, and the weights."""
    if key_format == "fp8":
        q8, folded = quantize_queries(q, weights, dtype)
        return (q8,), folded
    octets, scales, folded = quantize_mx_queries(q, weights, key_format, rule=RULES[key_format])
    return (octets, scales), folded


def _float32_logits(
    q: torch.Tensor, weights: torch.Tensor, k: torch.Tensor, keys: list[int], starts: list[int], seen: torch.Tensor
) -> torch.Tensor:
    """The logits of every row in float32; -inf past the ``seen`` keys after each row's start, and before it."""
    rows = len(q) // len(keys)
    heads, dim = q.shape[1:]
    exact = torch.full((len(q), max(starts) + max(keys)), float("-inf"), device=q.device)
    first = 0
    for request, count in enumerate(keys):
        block = slice(request * rows, (request + 1) * rows)
        dots = torch.einsum("ihd,jd->ihj", q[block].float(), k[first : first + count].float()).relu_()
        logits = torch.einsum("ih,ihj->ij", weights[block] * (dim**-0.5 * heads**-0.5), dots)
        past = torch.arange(count, device=q.device) >= seen[block, None]
        start = starts[request * rows]
        exact[block, start : start + count] = logits.masked_fill_(past, float("-inf"))
        first += count
    return exact
