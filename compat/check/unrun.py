"""What a script is told of a GPU where its launches are answered and not run."""

from types import SimpleNamespace
from typing import Any

from ..offline.absent import AbsentGpu
from ..offline.occupancy import shared_limit
from ..targets import Target

# Multiprocessors or compute units: the H100 SXM's; AMD's CDNA 3 and CDNA 4 white papers (MI300X, MI350X).
MULTIPROCESSORS = {"cuda:90": 132, "hip:gfx942": 304, "hip:gfx950": 256}
OTHERWISE = 132
SHARED = 65536  # bytes of shared memory or LDS of a block, where the table of occupancy has no row
MEMORY = 2**36  # bytes: of no GPU in particular
REGISTERS = 65536  # 32-bit ones of a block, as both vendors' drivers say


class UnrunGpu(AbsentGpu):
    """A driver for scripts that ask it for more than a compile does.

    fake : whether torch's device is a GPU that fake tensors are on; otherwise it is the CPU
    """

    def __init__(self, target: Target, fake: bool) -> None:
        super().__init__(target)
        self.fake = fake
        self.utils = self

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0) if self.fake else torch.device("cpu")

    def get_device_properties(self, device: int = 0) -> dict[str, int]:
        """As Triton's drivers say them."""
        return {
            "multiprocessor_count": MULTIPROCESSORS.get(str(self.target), OTHERWISE),
            "max_shared_mem": shared_limit(self.target.backend, self.target.arch) or SHARED,
            "max_num_regs": REGISTERS,
            "warpSize": self.target.warp_size,
        }

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        """As ``torch.cuda`` says it, whose figures for AMD are the gfx number's."""
        if self.target.backend == "cuda":
            return divmod(int(self.target.arch), 10)
        number = self.target.arch.partition("-")[0].removeprefix("gfx")  # such as 942: major 9, minor 4, stepping 2
        return int(number[:-2]), int(number[-2])

    def cuda(self) -> dict[str, Any]:
        """Functions of ``torch.cuda``, as they answer of this GPU: what libraries ask before they launch anything.

        Whether there is any GPU is torch's to say, unless tensors on one can be made.
        """
        properties = self.get_device_properties()
        major, minor = self.get_device_capability()
        known = SimpleNamespace(
            name=self.target.label,
            major=major,
            minor=minor,
            total_memory=MEMORY,
            multi_processor_count=properties["multiprocessor_count"],
            warp_size=self.target.warp_size,
            shared_memory_per_block_optin=properties["max_shared_mem"],
            gcnArchName=self.target.arch,
        )
        there = {"is_available": lambda: True, "device_count": lambda: 1} if self.fake else {}
        return {
            **there,
            "current_device": lambda: 0,
            "set_device": lambda device: None,
            "synchronize": lambda device=None: None,
            "current_stream": lambda device=None: SimpleNamespace(cuda_stream=0),
            "get_device_capability": lambda device=None: (major, minor),
            "get_device_name": lambda device=None: self.target.label,
            "get_device_properties": lambda device=None: known,
            "_exchange_device": lambda device: 0,
            "_maybe_exchange_device": lambda device: 0,
        }
