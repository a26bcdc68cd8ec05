"""One decode step from bfloat16 activations: quantised queries, keys written into a paged cache, logits from there."""

from functools import partial
from typing import Any, NamedTuple

import torch

from ...common.logits import empty_logits
from ...key_cache import quantize_keys_to_cache
from ...paged_mqa_logits import fp8_paged_mqa_logits, paged_mqa_schedule, paged_mqa_workers, reference
from ...paged_mqa_logits.operands import Inputs
from ...paged_mqa_logits.operation import example, operation
from ...quantize import quantize_queries
from ..workloads.decode import DecodeBatch, around
from ..workloads.paging import scattered_table, slots
from .agreement import SENTINEL, Outcome, calc_diff, count_disturbed, runnable, show, timer_of
from .working import working

HEADS, DIM, BLOCK, NEXT_N = 64, 128, 64, 2  # two rows a request: one draft token
ON_GPU = (64, 8192 // 4)  # requests, and their mean context in keys: 8192 tokens at one key per 4
ON_CPU = (4, 96)


class Activations(NamedTuple):
    """What a model's layer hands to its indexer in one step, the keys of earlier steps included.

    q : [B, next_n, H, D] bfloat16
    weights : [B, next_n, H] float32
    k : [sum of lens, D] bfloat16, the requests side by side
    lens : [B] int32
    """

    q: torch.Tensor
    weights: torch.Tensor
    k: torch.Tensor
    lens: torch.Tensor


def score(console: Any, device: torch.device) -> list[Outcome]:
    """Take one step through every variant, and print the outcomes."""
    from rich.text import Text

    requests, mean = ON_GPU if device.type == "cuda" else ON_CPU
    problem = example(device)
    step = _activations(requests, mean, device)
    with working("quantising"):
        batch = _quantise(step, getattr(torch, problem.dtype))
    sizes = (
        f" of {int(step.lens.min())} to {int(step.lens.max())} keys in a paged cache "
        f"(blocks of {BLOCK}), {NEXT_N} rows a request, {HEADS} heads of {DIM}: bfloat16 activations are quantised to "
        f"{problem.dtype}, keys written into the cache, and scored there"
    )
    console.print(Text.assemble((f"Decode: {requests} requests", "bold"), sizes))
    names, notes = runnable(operation, problem)
    with working("float64"):
        same, activations = _exact(batch), _from_activations(step, batch.max_context_len)
    outcomes = [_run_variant(batch, same, activations, name, clean) for name in names for clean in (True, False)]
    show(console, operation.name, outcomes, operation.explain(problem).variant, notes)
    console.print()
    return outcomes


def _activations(requests: int, mean: int, device: torch.device) -> Activations:
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    lens = around(mean, requests)()
    q, weights = normal(requests, NEXT_N, HEADS, DIM), normal(requests, NEXT_N, HEADS, dtype=torch.float32)
    return Activations(q, weights, normal(int(lens.sum()), DIM), lens.to(device))


def _quantise(step: Activations, dtype: torch.dtype) -> DecodeBatch:
    """The library's own way from activations to operands; the requests' blocks lie scattered over the cache."""
    generator = torch.Generator(step.k.device).manual_seed(1)
    block_table, blocks = scattered_table(step.lens, BLOCK, generator)
    kv_cache = torch.zeros((blocks, BLOCK, 1, DIM + 4), dtype=torch.uint8, device=step.k.device)
    quantize_keys_to_cache(step.k, kv_cache, slots(block_table, step.lens, BLOCK), dtype=dtype)
    q, weights = quantize_queries(step.q, step.weights, dtype)
    return DecodeBatch(q, kv_cache, weights.flatten(0, 1), step.lens, block_table, int(step.lens.max()))


def _exact(batch: DecodeBatch) -> torch.Tensor:
    """The logits of the fp8 operands in float64, NaN where a row sees no key."""
    shape = (batch.weights.shape[0], batch.max_context_len)
    exact = torch.full(shape, float("nan"), device=batch.q.device, dtype=torch.float64)
    reference.launch(Inputs(*batch.operands), exact, clean_logits=False, accumulate=torch.float64)
    return exact


def _from_activations(step: Activations, columns: int) -> torch.Tensor:
    """The same straight from the activations, by the formula: no quantiser, no cache, no table."""
    exact = torch.full((len(step.lens), NEXT_N, columns), float("nan"), device=step.k.device, dtype=torch.float64)
    first = 0
    for request, length in enumerate(step.lens.tolist()):
        k = step.k[first : first + length].double()
        dots = torch.einsum("nhd,jd->nhj", step.q[request].double(), k).relu_()
        logits = torch.einsum("nh,nhj->nj", step.weights[request].double(), dots) * (DIM**-0.5 * HEADS**-0.5)
        for row in range(NEXT_N):
            seen = length - NEXT_N + 1 + row
            exact[request, row, :seen] = logits[row, :seen]
        first += length
    return exact.flatten(0, 1)


def _run_variant(batch: DecodeBatch, same: torch.Tensor, activations: torch.Tensor, variant: str, clean: bool) -> Outcome:
    """Time one variant with its schedule given, and compare it with both float64 results, with a sentinel outside."""
    device = batch.q.device
    timer = timer_of(device)
    workers = paged_mqa_workers(batch.q, batch.kv_cache, clean_logits=clean, variant=variant)
    schedule = paged_mqa_schedule(batch.context_lens, BLOCK, workers)
    logits = empty_logits((batch.weights.shape[0], batch.max_context_len), device).fill_(SENTINEL)
    keywords: dict[str, Any] = {"max_context_len": batch.max_context_len, "clean_logits": clean, "variant": variant}
    with working(f"{variant}, clean_logits={clean}"):
        timing = timer(partial(fp8_paged_mqa_logits, *batch.operands, schedule=schedule, out=logits, **keywords))

    inside = ~same.isnan()
    difference, end_to_end = (calc_diff(logits[inside], exact[inside]) for exact in (same, activations))
    disturbed = count_disturbed(logits, inside, clean)
    return Outcome(operation.name, variant, clean, timing.median, difference, end_to_end, disturbed)
