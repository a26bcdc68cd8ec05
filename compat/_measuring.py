"""Which of the variants that take a problem is the fastest here: timed once, and remembered for this stack."""

import logging
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

from . import _probes, _switches

LOG = logging.getLogger("capgate")

P = TypeVar("P", bound=Hashable)

ROUNDS = 5  # in which the variants take turns; the median of them counts
ROUND_US = 2000  # that a variant runs in a round: some hundred launches of a short kernel
MOST_CALLS = 200
FAR_BEHIND = 10  # times the fastest: such a variant has its first time, and no rounds

ONE_AT_A_TIME = threading.RLock()  # threads that are timed side by side slow each other down; an operation may call another


class Measurement(NamedTuple):
    """What was measured of a problem.

    times : variant to the microseconds of one of several calls in a row, the arguments in the GPU's caches as far as they fit
    """

    times: Mapping[str, float]

    @property
    def fastest(self) -> str:
        """The variant with the least time."""
        return min(self.times, key=self.times.__getitem__)


class Measurements(Generic[P]):
    """What is known of the problems of an operation: measured here, or with CAPGATE_MEASURE=1 read from the cache."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._known: dict[tuple[P, str, str], Measurement | None] = {}

    def find(self, problem: P) -> Measurement | None:
        """The measurement of a problem on this stack, under such switches; None where there is none."""
        key = self._key(problem)
        if key in self._known:
            return self._known[key]
        if not _switches.current().measure or not hasattr(getattr(problem, "device", None), "type"):
            return None
        found = self._known[key] = self._read(problem)
        return found

    def keep(self, problem: P, measured: Measurement) -> None:
        """Remember a measurement, in this process and in the cache; a file that cannot be written is said, and not more."""
        self._known[self._key(problem)] = measured
        from ._measured_files import remember

        failure = remember(self._operation, problem, measured.times)
        if failure:
            LOG.warning("%s: what was measured is not remembered: %s", self._operation, failure)

    @staticmethod
    def _key(problem: P) -> tuple[P, str, str]:
        return problem, _probes.settings(), _switches.current().work

    def _read(self, problem: P) -> Measurement | None:
        from ._measured_files import recall  # nobody needs it who does not measure

        times, failure = recall(self._operation, problem)
        if failure:
            LOG.warning("%s: measured anew, for %s", self._operation, failure)
        return None if times is None else Measurement(times)


def needs_device(problem: Any) -> Any:
    """The problem's device, on which something can be timed; ValueError for any other."""
    device = getattr(problem, "device", None)
    if getattr(device, "type", None) not in ("cuda", "cpu"):
        raise ValueError(f"problem: its device is {device!r}, needs a torch.device of a GPU or of the CPU")
    return device


def capturing(device: Any) -> bool:
    """Whether the current stream's launches go into a graph, where nothing runs and no event may be waited for."""
    return device.type == "cuda" and bool(sys.modules["torch"].cuda.is_current_stream_capturing())


def timed(device: Any, runs: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Microseconds of one call of each; all of them have run before, so that nothing is compiled meanwhile.

    The calls of a round stand in a row. Events of the device are round them, on the CPU a clock.
    """
    from statistics import median  # 10 ms that importing this package need not take

    clock = _events if device.type == "cuda" else _wall
    times = {name: [clock(device, run, 1)] for name, run in runs.items()}
    least = min(first for first, *_ in times.values())
    for _ in range(ROUNDS):
        for name, run in runs.items():
            first = times[name][0]
            if first <= FAR_BEHIND * least:
                times[name].append(clock(device, run, max(1, min(MOST_CALLS, int(ROUND_US / first)))))
    return {name: round(median(rounds[1:] or rounds), 3) for name, rounds in times.items()}


def _events(device: Any, run: Callable[[], Any], calls: int) -> float:
    cuda = sys.modules["torch"].cuda
    with cuda.device(device):
        start, end = (cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
    return max(float(start.elapsed_time(end)) * 1000 / calls, 1e-3)


def _wall(device: Any, run: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return max((time.perf_counter() - start) * 1e6 / calls, 1e-3)
