"""Medians of a call's time: device events on a GPU, a wall clock on the CPU."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch


def this_device() -> torch.device:
    """The current GPU, or the CPU where there is none."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


class Timing(NamedTuple):
    """Milliseconds: the median, and the first and third quartile that show the noise."""

    median: float
    low: float
    high: float


class Timer:
    """Times calls on one device.

    On a GPU the time between two events around the call. The flush before it takes milliseconds, in which the call has been
    enqueued behind it: what Python and the launch cost stays hidden, and calls of a few microseconds are timed as those of
    a captured graph would be. With ``flush_bytes=0`` it does not.

    repeats : timed calls after ``warmup`` untimed ones
    flush_bytes : written before each timed call on a GPU, so that nothing is left in its caches and its clocks stay up
    """

    def __init__(self, device: torch.device, *, repeats: int = 20, warmup: int = 3, flush_bytes: int = 8 * 10**9) -> None:
        self.device = device
        self.repeats = repeats
        self.warmup = warmup
        on_gpu = device.type == "cuda"
        self._flush = torch.empty(flush_bytes, dtype=torch.uint8, device=device) if on_gpu and flush_bytes else None

    def __call__(self, function: Callable[[], object]) -> Timing:
        """The time of ``function``, which enqueues work on the device's current stream."""
        once = self._on_gpu if self.device.type == "cuda" else self._on_cpu
        for _ in range(self.warmup):
            function()
        times = [once(function) for _ in range(self.repeats)]
        low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
        return Timing(median, low, high)

    def _on_gpu(self, function: Callable[[], object]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self._flush is not None:
            self._flush.fill_(1)
        begin.record()
        function()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end))

    def _on_cpu(self, function: Callable[[], object]) -> float:
        begin = time.perf_counter()
        function()
        return (time.perf_counter() - begin) * 1e3
