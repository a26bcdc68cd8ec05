"""The steps of a process up to its first results, and when each ends: run as a file, so that nothing is imported before.

Prints a line of JSON: a list of names and of seconds since the epoch, and the variant that was taken.
"""

import json
import time
from contextlib import suppress

ends: list[tuple[str, float]] = [("start of Python", time.time())]


def note(step: str) -> None:
    """The step has ended now."""
    ends.append((step, time.time()))


def main() -> None:
    """Take the steps."""
    import torch

    note("import torch")
    with suppress(ImportError):
        import triton  # noqa: F401 - it takes the time that it takes
    note("import triton")
    from capgate.kernels import fp8_mqa_logits

    note("import capgate.kernels")
    from capgate.kernels.mqa_logits.operation import operation
    from capgate.kernels.tools.bench.timing import this_device
    from capgate.kernels.tools.workloads.prefill import Prefill, causal

    device = this_device()
    problem = operation.example(device)  # type: ignore[misc] # it has an example
    batch = Prefill("", "", 16, 512, 64, 128, causal(16, 512)).make(device, getattr(torch, problem.dtype))

    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    finish()
    note("operands on the device")
    for call in ("first call", "second call"):
        fp8_mqa_logits(*batch.operands, clean_logits=False)
        finish()
        note(call)
    print(json.dumps({"ends": ends, "variant": operation.select(problem).name, "device": device.type}))


if __name__ == "__main__":
    main()
