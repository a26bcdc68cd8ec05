"""Every workload by name: the shapes on a GPU, and the same kinds of shape small enough for a CPU."""

from dataclasses import replace
from itertools import product
from typing import Any

from .accuracy import Accuracy
from .decode import Decode, around, given
from .matrix import Matrix
from .prefill import Prefill, causal, full, packed
from .selection import DecodeSelection, Ordered, Selection, alike, ascending, in_step, rising
from .serving import Serving


def _decode(mean: int, words: str, further: tuple[tuple[int, int], ...] = ()) -> list[Decode]:
    """256 requests of DeepGEMM's paged test, with both head counts and with one and two rows a request; and ``further``."""
    name = f"decode-{mean // 1024}k"
    return [
        Decode(
            name + ("" if heads == 64 else f"-h{heads}") + ("" if next_n == 1 else f"-n{next_n}"),
            f"{words}, {heads} heads, next_n {next_n}",
            256,
            around(mean, 256),
            heads,
            next_n,
        )
        for heads, next_n in (*product((64, 32), (1, 2)), *further)
    ]


def _ordered(selection: Selection) -> tuple[Ordered, ...]:
    """The same from logits in each order."""
    orders = {"equal": alike, "ascending": ascending, "in-step": in_step, "rising": rising}
    return tuple(
        Ordered(replace(selection.prefill, name=f"{selection.name}-{name}"), selection.top_k, arrange=arrange)
        for name, arrange in orders.items()
    )


# The shapes on which the published kernels have been compared (a to f), causal unless their words say otherwise.
PREFILL = (
    Prefill("a", "causal", 4096, 4096, 64, 128, causal(4096, 4096)),
    Prefill("b", "last rows of a long sequence", 2048, 8192, 64, 128, causal(2048, 8192)),
    Prefill("c", "causal", 8192, 8192, 64, 128, causal(8192, 8192)),
    Prefill("d1", "16 requests of 1024", 16384, 16384, 64, 128, packed(16, 1024, 1024)),
    Prefill("d2", "4 requests of 8192 keys", 8192, 32768, 64, 128, packed(4, 2048, 8192)),
    Prefill("d3", "64 requests of 1024, compressed", 65536, 65536, 64, 128, packed(64, 1024, 1024), 1024),
    Prefill("e-a", "causal, 32 heads", 4096, 4096, 32, 128, causal(4096, 4096)),
    Prefill("e-c", "causal, 32 heads", 8192, 8192, 32, 128, causal(8192, 8192)),
    Prefill("f", "few rows", 64, 8192, 64, 128, causal(64, 8192)),
    Prefill("f32", "few rows, 32 heads", 64, 8192, 32, 128, causal(64, 8192)),
)
DECODE = (
    *_decode(8192, "mean context 8192"),
    *_decode(65536, "mean context 65536", ((64, 4), (64, 6))),
    Decode("decode-b1", "one request of 65536", 1, given([65536])),
    Decode("decode-b8", "8 requests of 65536", 8, given([65536] * 8)),
    Decode("decode-skewed", "one request of 65536 and 255 of 512", 256, given([65536] + [512] * 255)),
    Decode("decode-even", "the keys of decode-skewed, spread evenly", 256, given([766] * 256)),
)
# DeepSeek-V4-Flash's indexer, 64 requests in flight, prompts packed to 16384 tokens: the runs of published comparisons.
SERVING = (
    Serving("1k1k", "1024 tokens in, 1024 out", 1024, 1024),
    Serving("8k1", "8192 tokens in, 1 out", 8192, 1),
)
# DeepSeek-V3.2 selects 2048 keys and V4-Flash 512.
TOP_64K = Selection(Prefill("top2048-64k", "last rows of 65536", 4096, 65536, 64, 128, causal(4096, 65536)), 2048)
TOP_256K = Selection(Prefill("top2048-256k", "last rows of 262144", 2048, 2**18, 64, 128, causal(2048, 2**18)), 2048)
SELECTION = (
    Selection(Prefill("top2048", "causal", 8192, 8192, 64, 128, causal(8192, 8192)), 2048),
    Selection(Prefill("top512", "causal", 8192, 8192, 64, 128, causal(8192, 8192)), 512),
    Selection(Prefill("top2048-full", "every row sees every key", 8192, 8192, 64, 128, full(8192, 8192)), 2048),
    TOP_64K,
    Selection(Prefill("top2048-128k", "last rows of 131072", 8192, 131072, 64, 128, causal(8192, 131072)), 2048),
    Selection(Prefill("top512-128k", "last rows of 131072", 8192, 131072, 64, 128, causal(8192, 131072)), 512),
    Selection(Prefill("top512-32k", "131072 tokens, a key for 4", 8192, 32768, 64, 128, causal(8192, 32768)), 512),
    TOP_256K,
)
ORDERED = _ordered(TOP_64K) + _ordered(TOP_256K)
DECODE_SELECTION = (
    DecodeSelection(Decode("decode-top2048-128k", "64 requests of 131072", 64, given([131072] * 64)), 2048),
    DecodeSelection(Decode("decode-top512-32k", "64 requests of 32768 keys", 64, given([32768] * 64)), 512),
    DecodeSelection(Decode("decode-top2048-1m", "one request of 1048576", 1, given([2**20])), 2048),
)
# Histories of 4096 to 1048576 tokens, with the query counts of a few drafts and of prefill chunks. 2048 keys, as DeepSeek-V3.2.
HISTORIES = tuple(1024 * k for k in (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 640, 768, 896, 1024))
MATRIX = tuple(
    Matrix(f"matrix-{queries}", f"{queries} queries behind a history", queries, HISTORIES, 2048)
    for queries in (8, 512, 2048, 8192)
)
ACCURACY = (Accuracy("recall", "top 512 keys of an 8192-token prompt and of 32768-token contexts, against float32"),)

SMALL_PREFILL = (
    Prefill("a", "causal, small", 256, 256, 64, 128, causal(256, 256)),
    Prefill("b", "last rows, small", 64, 512, 64, 128, causal(64, 512)),
    Prefill("d1", "4 requests of 64, small", 256, 256, 64, 128, packed(4, 64, 64)),
    Prefill("e-a", "causal, 32 heads, small", 256, 256, 32, 128, causal(256, 256)),
    Prefill("f", "few rows, small", 8, 1024, 64, 128, causal(8, 1024)),
)
SMALL_DECODE = (
    Decode("decode-8k", "mean context 192, small", 4, around(192, 4)),
    Decode("decode-8k-h32-n2", "32 heads, next_n 2, small", 4, around(192, 4), 32, 2),
    Decode("decode-skewed", "one request of 512 and 7 of 32, small", 8, given([512] + [32] * 7)),
)
SMALL_SERVING = (
    Serving("1k1k", "64 tokens in, 16 out, small", 64, 16, requests=4, batch_tokens=128, layers=2, bucket=2),
    Serving("8k1", "128 tokens in, 1 out, small", 128, 1, requests=2, batch_tokens=128, layers=2),
)
SMALL_SELECTION = (
    Selection(Prefill("top2048", "top 32, small", 128, 256, 64, 128, causal(128, 256)), 32, budget=2**16),
    Selection(Prefill("top2048-full", "top 32, small", 32, 256, 64, 128, full(32, 256)), 32),
)
SMALL_ORDERED = _ordered(Selection(Prefill("top2048-64k", "top 32, small", 32, 256, 64, 128, causal(32, 256)), 32))
SMALL_DECODE_SELECTION = (
    DecodeSelection(Decode("decode-top2048-128k", "top 32, small", 2, given([400, 256])), 32, budget=2**20),
)
SMALL_MATRIX = tuple(
    Matrix(f"matrix-{queries}", "small", queries, (32, 64, 256), 16, dim=64, budget=2**20) for queries in (2, 16)
)
SMALL_ACCURACY = (Accuracy("recall", "top 32 keys, small", 512, 2, rows=8, requests=2, context_tokens=512, top_k=32),)


def _by_name(workloads: tuple[Any, ...]) -> dict[str, Any]:
    return {workload.name: workload for workload in workloads}


WORKLOADS = _by_name(PREFILL + DECODE + SELECTION + ORDERED + DECODE_SELECTION + SERVING + ACCURACY + MATRIX)
SMALL_SELECTIONS = SMALL_SELECTION + SMALL_ORDERED + SMALL_DECODE_SELECTION
SMALL = _by_name(SMALL_PREFILL + SMALL_DECODE + SMALL_SELECTIONS + SMALL_SERVING + SMALL_ACCURACY + SMALL_MATRIX)
GROUPS = {
    "all": (Prefill, Decode, Selection, DecodeSelection, Serving, Accuracy),  # no orders, no matrix, which take minutes
    "prefill": (Prefill,),
    "decode": (Decode,),
    "selection": (Selection,),
    "orders": (Ordered,),
    "decode-selection": (DecodeSelection,),
    "serving": (Serving, Accuracy),
    "matrix": (Matrix,),
}


def select(names: list[str], known: dict[str, Any]) -> list[Any]:
    """The workloads of ``known`` with these names, or in these groups, in the order of ``known``."""
    kinds = {kind for name in names for kind in GROUPS.get(name, ())}
    return [workload for name, workload in known.items() if name in names or type(workload) in kinds]
