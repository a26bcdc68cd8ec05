"""What a deployment fixes, and the shapes of its calls that differ in what Triton compiles.

Triton compiles a kernel for its constants and dtypes, and for whether each size and stride is 1, a multiple of 16 or neither,
and each address a multiple of 16; on AMD also for whether a tensor's storage is below 2 GiB. So some shapes stand for all: of a
size that varies from call to call every power of two, one past it, and small ones with each power of two up to 16 as a factor.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

from capgate import compat

from ...common.hardware import multiprocessors
from ...common.rules import BF16
from ...key_selection.operation import MODES as SELECTIONS
from ...key_selection.tunings import for_target, long_rows
from ...mqa_logits.operation import MODES as DENSE
from ...paged_mqa_logits.operation import MODES as PAGED

Shape = dict[str, Any]

SCHEDULES = ("own", "deep_gemm", "none")
SMALL = (1, 2, 3, 4, 8, 16)  # all that matters of a size where it is a factor of another: odd, or times a power of two
FEWEST_KEYS = 16
FAR = 2**31  # bytes from which on AMD's offsets are no longer 32 bits wide, as Triton takes it
FEW_ROWS = 16  # any number; of long rows few enough to be cut
PAGE_TABLES = (1, 3, 16)  # rows of a page table: as many as there are requests


class Deployment(NamedTuple):
    """What a model and an engine's settings fix. Of a tuple each is meant.

    heads, dim : of a query
    dtype : of queries and keys; None is what the target's matrix instructions read
    modes : outputs, as ``capgate compile`` has them: of logits "unclean", "clean", "compressed", each with "-bf16" too; of
        selections "indices", "scores". Of those of which none is named: "unclean", "indices"
    max_rows : query rows of a prefill step
    max_requests : requests in decode
    max_context : keys of the longest context, which is how many columns decode has
    max_window : columns of compressed logits; where none are named, they may vary up to max_context
    block, layout : of a paged cache
    cache_blocks : blocks of the cache; where none are named, numbers that are multiples of 16 and others
    next_n : rows of a request in decode
    row_lens : whether lengths are given for each of them
    schedule : what decode is given: "own", of as many workers as :func:`capgate.kernels.paged_mqa_workers` says, "deep_gemm",
        of one worker for each SM and 256 keys in a chunk, as its callers make it, or "none"
    top_k : keys that are selected
    relative : whether a prefill's indices are counted from its rows' windows
    page_size : positions of a page where slots are selected; None for indices
    largest : what :func:`capgate.kernels.quantize_keys_to_cache` is given to scale keys by; None for the dtype's own
    """

    heads: int = 64
    dim: int = 128
    dtype: str | None = None
    modes: tuple[str, ...] = ()
    max_rows: int = 8192
    max_requests: int = 256
    max_context: int = 131072
    max_window: tuple[int, ...] = ()
    block: int = 64
    layout: str = "flat"
    cache_blocks: tuple[int, ...] = ()
    next_n: tuple[int, ...] = (1,)
    row_lens: bool = False
    schedule: str = "own"
    top_k: tuple[int, ...] = (2048,)
    relative: bool = False
    page_size: int | None = None
    largest: float | None = None


def sizes(least: int, most: int) -> list[int]:
    """Sizes that stand for all from ``least`` to ``most``."""
    found = {size for size in SMALL if size >= least}
    power = 32
    while power <= most:
        found |= {power, power + 1}
        power *= 2
    return sorted(size for size in {*found, most} if least <= size <= most)


def modes_of(known: Sequence[str], deployment: Deployment) -> list[str]:
    """The deployment's modes that are ``known``, which first names the usual one."""
    return [mode for mode in deployment.modes if mode.removesuffix(BF16) in known] or [known[0]]


def shapes_of(
    operation: compat.Operation[Any], target: compat.Target, deployment: Deployment, variants: Sequence[str]
) -> list[Shape]:
    """The shapes of an operation's calls; of one that is not known here the modes of its examples.

    variants : that are named
    """
    if operation.name in SHAPES:
        return list(SHAPES[operation.name](target, deployment, variants))
    if operation.examples is None:
        raise ValueError(f"operation: {operation.name} has no examples to compile")
    known = operation.examples.modes
    return [{"mode": mode} for mode in [mode for mode in deployment.modes if mode in known] or known]


def _dense(target: compat.Target, deployment: Deployment, variants: Sequence[str]) -> Iterator[Shape]:
    for mode in modes_of(tuple(DENSE), deployment):
        compressed = DENSE[mode.removesuffix(BF16)][1]
        widths = (deployment.max_window or _two_classes(deployment.max_context)) if compressed else (None,)
        for rows in sizes(1, deployment.max_rows):
            for keys in sizes(FEWEST_KEYS, deployment.max_context):
                yield from ({"mode": mode, "rows": rows, "keys": keys, "width": width} for width in widths)


def _paged(target: compat.Target, deployment: Deployment, variants: Sequence[str]) -> Iterator[Shape]:
    given = [deployment.schedule != "none"]
    if deployment.schedule == "own" and compat.capabilities(target).dependent_launch:
        given.append(False)  # select_paged_keys gives none, and then the kernel waits for one
    for mode in modes_of(tuple(PAGED), deployment):
        for next_n in deployment.next_n:
            for blocks in _cache_blocks(target, deployment):
                for requests in sizes(1, deployment.max_requests):
                    shape = {"mode": mode, "next_n": next_n, "blocks": blocks, "requests": requests}
                    yield from ({**shape, "scheduled": scheduled} for scheduled in given)


def _schedules(target: compat.Target, deployment: Deployment, variants: Sequence[str]) -> Iterator[Shape]:
    if deployment.schedule == "none":
        raise ValueError("schedule: got 'none' with paged_mqa_schedule, needs own or deep_gemm")
    for mode in modes_of(tuple(PAGED), deployment):
        for next_n in deployment.next_n:
            for variant in variants or (None,):
                for requests in sizes(1, deployment.max_requests):
                    yield {"mode": mode, "next_n": next_n, "requests": requests, "logits_variant": variant}


def _selections(target: compat.Target, deployment: Deployment, variants: Sequence[str]) -> Iterator[Shape]:
    compressed = any(mode.startswith("compressed") for mode in deployment.modes)
    bfloat16 = {mode.endswith(BF16) for mode in deployment.modes if mode.removesuffix(BF16) in DENSE} or {False}
    storages = (0, FAR) if target.backend == "hip" else (0,)
    all_columns = sizes(FEWEST_KEYS, deployment.max_context)
    columns: list[tuple[int, int | None]] = [(keys, None) for keys in all_columns]
    if compressed:
        widths = deployment.max_window or all_columns
        columns += [(width, keys) for width in widths for keys in _two_classes(deployment.max_context)]
    calls: list[Shape] = [{"columns": width, "keys": keys, "next_n": None} for width, keys in columns]
    calls += [{"columns": deployment.max_context, "keys": None, "next_n": next_n} for next_n in sorted({1, *deployment.next_n})]
    modes = modes_of(("indices", "scores"), deployment)
    tables = (None,) if deployment.page_size is None else PAGE_TABLES
    for mode, top_k, half, storage, requests in product(modes, deployment.top_k, sorted(bfloat16), storages, tables):
        for call in calls:
            shape = {"mode": mode, "top_k": top_k, "half": half, "storage": storage, "requests": requests, **call}
            for rows in _selected_rows(target, call["columns"]):
                yield {**shape, "rows": rows, "listed": False}
            if call["columns"] <= top_k and mode == "indices":  # where all keys are selected nobody asks for a logit
                yield {**shape, "rows": FEW_ROWS, "listed": True}


def _selected_rows(target: compat.Target, columns: int) -> tuple[int, ...]:
    """Numbers of rows between which a selection's kernels differ: of long rows those that are cut, and those that are not."""
    if columns <= for_target(target).block_logits:
        return (FEW_ROWS,)
    return FEW_ROWS, long_rows(target).resident * multiprocessors(target)


def _writing(target: compat.Target, deployment: Deployment, variants: Sequence[str]) -> Iterator[Shape]:
    for blocks in _cache_blocks(target, deployment):
        for keys in sizes(1, deployment.max_rows):
            for scale_format in ("fp32", "ue8m0"):
                yield {"blocks": blocks, "keys": keys, "scale_format": scale_format}


def _gathering(target: compat.Target, deployment: Deployment, variants: Sequence[str]) -> Iterator[Shape]:
    for blocks in _cache_blocks(target, deployment):
        for requests in sizes(1, deployment.max_requests):
            for keys in sizes(FEWEST_KEYS, deployment.max_context):
                yield from ({"blocks": blocks, "requests": requests, "keys": keys, "between": form} for form in (False, True))


def _two_classes(size: int) -> tuple[int, int]:
    """Sizes near this one: a multiple of 16, and none."""
    return 16 * -(-size // 16), 16 * -(-size // 16) + 1


def _cache_blocks(target: compat.Target, deployment: Deployment) -> Sequence[int]:
    """How many blocks a cache may have; nobody knows how many before the model is loaded."""
    if deployment.cache_blocks:
        return deployment.cache_blocks
    many = 16 * -(-FAR // (16 * deployment.block * (deployment.dim + 4)))
    return (4096, 4097, *((many, many + 1) if target.backend == "hip" else ()))


SHAPES: dict[str, Callable[[compat.Target, Deployment, Sequence[str]], Iterator[Shape]]] = {
    "fp8_mqa_logits": _dense,
    "fp8_paged_mqa_logits": _paged,
    "paged_mqa_schedule": _schedules,
    "select_keys": _selections,
    "quantize_keys_to_cache": _writing,
    "gather_keys": _gathering,
}
KNOWN_MODES = {*DENSE, *(name + BF16 for name in DENSE), *SELECTIONS}
