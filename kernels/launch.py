"""What a variant's ``prepare`` returns: everything of a kernel launch but the launch itself."""

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
