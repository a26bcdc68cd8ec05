"""What a variant's ``prepare`` takes in an offline compile, and what it returns: a kernel launch but the launch itself."""

from functools import cache
from typing import Any, NamedTuple


class Launch(NamedTuple):
    """A kernel with its grid, its arguments in order, and its constants and launch options by name.

    Calling it launches. An offline compile prepares it from meta tensors and hands the parts to the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self) -> None:
        self.kernel[self.grid](*self.arguments, **self.keywords)


class ExampleCall(NamedTuple):
    """A call of ``prepare`` for a problem: meta tensors in order, options by name.

    products : multiply-adds that the matrix units spend on one key for one row, heads padded
    """

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    products: int


@cache
def multiprocessors(device: Any) -> int:
    """SMs of the NVIDIA GPU, CUs of the AMD GPU that a ``torch.device`` names; 1 for any other device."""
    import torch

    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
