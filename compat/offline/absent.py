"""A GPU that is not here, in the place of Triton's driver."""

from typing import Any

from ..targets import Target


class AbsentGpu:
    """As much of a driver as ``warmup`` asks for: Triton's own argument binder then finds divisibilities and constants."""

    def __init__(self, target: Target) -> None:
        self.target = target

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        arch = int(self.target.arch) if self.target.backend == "cuda" else self.target.arch
        return GPUTarget(self.target.backend, arch, self.target.warp_size)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def set_absent_gpu(target: Target) -> None:
    """Make Triton compile for a GPU that is not here, as if a driver had found it."""
    from triton.runtime import driver

    driver.set_active(AbsentGpu(target))
