"""What a selection must return, by sorting unique integers, and logits to try it on.

Independent of capgate's own reference: of capgate only the public functions are used. capgate's tests judge by it, too.
"""

from typing import Any

import torch

from ...key_selection import select_from_logits
from . import judge

INF, NAN = float("inf"), float("nan")
KINDS = ("normal", "skewed", "equal", "few-values", "zeros", "nans", "all-nan", "infinities", "wide", "tiny", "outlier")


def make_logits(kind: str, rows: int, columns: int, *, device: str = "cpu", seed: int = 0) -> torch.Tensor:
    """Random logits of one kind; many of them equal, or without order, or far apart."""
    generator = torch.Generator(device).manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator, device=device)
    uniform = torch.rand(rows, columns, generator=generator, device=device)
    if kind == "normal":
        return normal
    if kind == "skewed":
        return (-normal.abs() * 3).exp() * 100
    if kind == "equal":
        return torch.full_like(normal, -2.5)
    if kind == "few-values":
        return (normal * 2).round() / 2
    if kind == "zeros":  # of both signs, among others
        return torch.where(uniform < 0.3, 0.0, torch.where(uniform < 0.6, -0.0, normal))
    if kind == "nans":  # of both signs and with different payloads
        payloads = torch.where(normal < 0, -1, 0x7FC00000 + (uniform * 1000).int()).int().view(torch.float32)
        return torch.where(uniform < 0.3, payloads, torch.where(uniform < 0.5, INF, normal))
    if kind == "all-nan":
        return torch.full_like(normal, NAN)
    if kind == "infinities":
        return torch.where(uniform < 0.3, INF, torch.where(uniform < 0.8, -INF, normal))
    if kind == "wide":  # bits at random: every magnitude that there is
        bits = torch.randint(-(2**31), 2**31 - 1, (rows, columns), generator=generator, device=device)
        return bits.int().view(torch.float32)
    if kind == "tiny":  # denormal numbers
        return torch.randint(-500, 500, (rows, columns), generator=generator, device=device) * 2.0**-149
    if kind == "outlier":
        return torch.where(uniform < 2 / max(columns, 1), 1e30, normal * 1e-3)
    raise ValueError(f"kind: no kind {kind!r}")


def expected(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    top_k: int,
    num_keys: int | None = None,
    relative: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices and scores: every logit and its column make one integer, in the order in which they are to be selected."""
    rows, columns = logits.shape
    device = logits.device
    column = torch.arange(columns, device=device).expand(rows, columns)
    start = torch.zeros(rows, 1, dtype=torch.int64, device=device) if starts is None else starts[:, None].long()
    key = column if num_keys is None else column + start
    inside = (key >= start) & (key >= 0) & (key < ends[:, None]) & (key < (columns if num_keys is None else num_keys))

    logits = logits.float()
    bits = logits.contiguous().view(torch.int32).long()
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # -0 and 0 are both 0
    order = torch.where(logits.isnan(), 2**31, order)
    unique = torch.where(inside, order * 2**31 - column, -(2**62) - column)
    chosen = unique.argsort(1, descending=True)[:, :top_k]
    chosen = torch.where(inside.gather(1, chosen), chosen, columns).sort(1).values
    missing = top_k - chosen.shape[1]
    chosen = torch.nn.functional.pad(chosen, (0, missing), value=columns)

    first = start.clamp(min=0) if relative else torch.zeros_like(start)
    padded = torch.nn.functional.pad(key - first, (0, 1), value=-1)
    scores = torch.nn.functional.pad(logits, (0, 1), value=-INF)
    return padded.gather(1, chosen).int(), scores.gather(1, chosen)


def placed(
    indices: torch.Tensor,
    offsets: torch.Tensor | None,
    page_table: torch.Tensor | None,
    page_size: int = 1,
    requests: torch.Tensor | None = None,
) -> torch.Tensor:
    """What indices, one by one, become with offsets, and as slots of a page table."""
    found = indices.clone()
    for row, column in (indices >= 0).nonzero().tolist():
        index = int(indices[row, column]) + (0 if offsets is None else int(offsets[row]))
        if page_table is not None:
            request, page = (row if requests is None else int(requests[row])), index // page_size
            there = index >= 0 and 0 <= request < page_table.shape[0] and page < page_table.shape[1]
            entry = int(page_table[request, page]) if there else -1
            index = entry * page_size + index % page_size if entry >= 0 else -1
        found[row, column] = index
    return found


def same(scores: torch.Tensor, others: torch.Tensor) -> bool:
    """Whether scores are equal, NaN to NaN."""
    return bool(((scores == others) | (scores.isnan() & others.isnan())).all())


def check(
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    ends: torch.Tensor,
    top_k: int,
    variant: str | None,
    *,
    alone: bool = True,
    **options: Any,
) -> torch.Tensor:
    """Select with ``variant``, with scores and, if ``alone``, once more without; hold it against the expectation, and return
    the indices."""
    operands = [tensor for tensor in (logits, starts, ends) if tensor is not None]
    before = [judge.storage_of(tensor, torch.uint8).clone() for tensor in operands]
    indices, scores = select_from_logits(logits, starts, ends, top_k=top_k, return_scores=True, variant=variant, **options)
    every = [indices]
    if alone:
        every.append(select_from_logits(logits, starts, ends, top_k=top_k, variant=variant, **options))
    for tensor, octets in zip(operands, before, strict=True):
        if not torch.equal(judge.storage_of(tensor, torch.uint8), octets):
            raise judge.Disagreement("an operand changed")
    right, right_scores = expected(logits, starts, ends, top_k, **options)
    for found in every:
        agree(found, right)
    if scores.dtype != torch.float32 or not same(scores, right_scores):
        raise judge.Disagreement("scores are not the selected logits")
    return indices


def agree(found: torch.Tensor, right: torch.Tensor) -> None:
    """Indices are these, int32 of that shape; raises Disagreement where they are not."""
    if found.dtype != torch.int32 or found.shape != right.shape:
        raise judge.Disagreement(f"returned {found.dtype} of {list(found.shape)}, needs int32 of {list(right.shape)}")
    wrong = (found != right).any(1).nonzero().flatten().tolist()
    if wrong:
        one = f"{found[wrong[0]].tolist()[:20]} and not {right[wrong[0]].tolist()[:20]}"
        raise judge.Disagreement(f"rows {wrong[:9]}, for one {one}")
