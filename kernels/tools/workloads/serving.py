"""The indexer's share of a serving run: its prefill and decode steps, replayed from a deterministic schedule.

Not a serving engine: no model, no scheduler, no network. What is counted is the GPU time of the indexer's logits in every
layer, and the tokens of the run divided by it, so an engine's tokens per second are fewer by all that it does besides.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...mqa_logits.operation import operation as prefill_operation
from ...paged_mqa_logits.operation import operation as decode_operation
from .batch import Workload, sizes
from .decode import Decode, given
from .prefill import Prefill, compressed_prefill

SHARE = "logits"  # what of the indexer's work is timed


class Step(NamedTuple):
    """One forward pass of the model.

    prompts : tokens of each prompt that it takes in, none in decode
    contexts : tokens that each request in decode has, the one that it adds included
    """

    prompts: tuple[int, ...]
    contexts: tuple[int, ...]


class Sample(NamedTuple):
    """A step that is timed, and how many steps of the run it stands for."""

    workload: Workload
    steps: int


@dataclass(frozen=True)
class Serving:
    """Requests that arrive together, as many as are in flight at a time.

    input_tokens, output_tokens : of each request
    batch_tokens : a prefill step takes as many whole prompts as fit
    layers : that have an indexer
    heads, dim, ratio : of the indexer, which keeps one key per ``ratio`` tokens
    bucket : decode steps whose contexts in keys fall into the same ``bucket`` are timed at one of them
    """

    name: str
    words: str
    input_tokens: int
    output_tokens: int
    requests: int = 64
    batch_tokens: int = 16384
    layers: int = 21
    heads: int = 64
    dim: int = 128
    ratio: int = 4
    bucket: int = 32

    @property
    def operations(self) -> tuple[Any, ...]:
        """Those of its steps: a run with one output token a request has no decode."""
        return (prefill_operation,) if self.output_tokens == 1 else (prefill_operation, decode_operation)

    def facts(self) -> dict[str, Any]:
        """Its sizes by name, and what is timed."""
        return {"share": SHARE, **sizes(self)}

    def schedule(self) -> Iterator[Step]:
        """Every step of the run in order.

        Prompts come first, packed whole and in order; the step that takes a prompt in also yields its first token. Then all
        requests decode in step, one token each.
        """
        at_once = max(1, self.batch_tokens // self.input_tokens)
        for first in range(0, self.requests, at_once):
            yield Step((self.input_tokens,) * min(at_once, self.requests - first), ())
        for made in range(1, self.output_tokens):
            yield Step((), (self.input_tokens + made,) * self.requests)

    def samples(self) -> list[Sample]:
        """The steps to time: every prefill shape, and for each bucket of decode contexts the mean of those that fall in."""
        prefills: dict[tuple[int, ...], int] = {}
        decodes: dict[int, list[int]] = {}
        for step in self.schedule():
            if step.prompts:
                prefills[step.prompts] = prefills.get(step.prompts, 0) + 1
            else:
                keys = step.contexts[0] // self.ratio
                decodes.setdefault(keys // self.bucket, []).append(keys)
        return [
            *(Sample(self._prefill(prompts), steps) for prompts, steps in prefills.items()),
            *(Sample(self._decode(round(sum(keys) / len(keys))), len(keys)) for keys in decodes.values()),
        ]

    def _prefill(self, prompts: tuple[int, ...]) -> Prefill:
        rows, keys = sum(prompts), sum(prompt // self.ratio for prompt in prompts)
        windows = compressed_prefill(prompts, self.ratio)
        return Prefill("prefill", f"{len(prompts)} prompts", rows, keys, self.heads, self.dim, windows)

    def _decode(self, keys: int) -> Decode:
        columns = (self.input_tokens + self.output_tokens) // self.ratio  # of the longest context, as an engine has them
        lens = given([keys] * self.requests)
        return Decode("decode", f"{keys} keys each", self.requests, lens, self.heads, dim=self.dim, columns=columns)


class Share(NamedTuple):
    """What a run took in one round: seconds of its prefill steps and of its decode steps, over all layers."""

    prefill: float
    decode: float

    def tokens_per_second(self, serving: Serving) -> dict[str, float]:
        """Tokens of the run divided by the seconds of the share."""
        output, seconds = serving.requests * serving.output_tokens, self.prefill + self.decode
        return {"output tok/s": output / seconds, "total tok/s": (output + serving.requests * serving.input_tokens) / seconds}
