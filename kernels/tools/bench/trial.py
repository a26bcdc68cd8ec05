"""A peer's first call, before it is timed: whether it runs, and whether its logits are those of ours."""

from functools import partial
from typing import NamedTuple

import torch

from capgate.compat.thirdparty import Raised, ask

from ..workloads.batch import Batch, Call
from ..workloads.selection import Choice
from .other_libraries import Peer

# DeepGEMM's limit of its calc_diff between kernels on the same fp8 operands: tests/test_attention.py.
SAME_OPERANDS = 5e-6
ROWS = 1024  # compared at a time, so that a large output needs little memory beside it


class Trial(NamedTuple):
    """A call that runs, and what it returned: logits, or the keys of a selection."""

    call: Call
    logits: torch.Tensor


def try_peer(peer: Peer, batch: Batch | Choice, clean_logits: bool, out: torch.Tensor) -> Trial | Raised | None:
    """The first of a peer's ways to call it that runs and returns logits, or keys; None where the library has no such call.

    out : a result of ours, which a peer's has to look like
    """
    module = peer.find()
    if module is None or isinstance(module, Raised):
        return module
    refused: list[str] = []
    for bind in peer.ways:
        call = ask(partial(bind, module, batch, clean_logits))
        if call is None:
            return None
        tried = call if isinstance(call, Raised) else ask(partial(_once, call, out))
        if not isinstance(tried, Raised):
            return tried
        refused.append(tried.words)
    return Raised("; then: ".join(dict.fromkeys(refused)))


def _once(call: Call, out: torch.Tensor) -> Trial:
    logits = call()
    if out.is_cuda:
        torch.cuda.synchronize(out.device)  # so that an error of the kernel is this call's
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"returned {type(logits).__name__}, needs a tensor")
    if logits.shape != out.shape or logits.device != out.device:
        raise ValueError(f"returned {list(logits.shape)} on {logits.device}, needs {list(out.shape)} on {out.device}")
    return Trial(call, logits)


def difference(batch: Batch, ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """DeepGEMM's calc_diff over the cells inside the rows' windows: ``1 - 2 sum(x y) / sum(x x + y y)``; NaN for any NaN."""
    first, end = batch.columns()
    columns = torch.arange(ours.shape[1], device=ours.device)
    products = squares = 0.0
    for row in range(0, len(ours), ROWS):
        rows = slice(row, row + ROWS)
        inside = (columns >= first[rows, None]) & (columns < end[rows, None])
        x, y = (logits[rows][inside].double() for logits in (ours, theirs))
        products += 2 * float((x * y).sum())
        squares += float((x * x + y * y).sum())
    return 1 - products / squares if squares else 0.0
