"""Somebody's kernels, held against other Tritons and GPUs than their own: what was launched, recorded, and compiled elsewhere.

``capgate record`` and :func:`record` note the launches of a run in a file, a recording; ``capgate check`` compiles what it
holds for any Triton and any target, without a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..targets import Target


@contextmanager
def record(
    file: str | Path, *, run: bool = True, fake: bool = False, configs: str = "chosen", target: Target | str = "cuda:90"
) -> Iterator[None]:
    """Note every launch of a Triton kernel meanwhile, for ``capgate check``, in ``file``.

    run : whether launches are run: on a GPU or in the interpreter. Otherwise each is noted and answered with None, and its
        outputs stay as they were; then tensors may be anywhere, on the CPU or the meta device
    fake : whether torch makes fake tensors meanwhile, on a GPU by their names; with run False alone
    configs : of an autotuned kernel the configuration that is "chosen", or "all" that it may choose from
    target : what a kernel's launcher is told that the GPU is, where launches are not run

    Raises ValueError for a target or a word that does not exist, OSError for a file that cannot be written.
    """
    from .recorder import Recorder

    with Recorder(file, run=run, fake=fake, configs=configs, target=target):
        yield


__all__ = ["record"]
