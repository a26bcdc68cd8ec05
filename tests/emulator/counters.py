"""What a launch counts."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counters:
    """Sums over all waves.

    instructions : dynamic instructions by category (valu, salu, mfma, lds, vmem, smem, branch, sync); mnemonics by name
    lds_cycles, lds_ideal_cycles : of LDS reads and writes; copies from global memory directly to LDS are not counted
    loaded_lines, stored_lines : 128-byte lines that each wave's vector instructions touch
    """

    instructions: Counter[str] = field(default_factory=Counter)
    mnemonics: Counter[str] = field(default_factory=Counter)
    lds_cycles: int = 0
    lds_ideal_cycles: int = 0
    lds_copied_bytes: int = 0
    loaded_bytes: int = 0
    stored_bytes: int = 0
    loaded_lines: int = 0
    stored_lines: int = 0

    @property
    def total(self) -> int:
        return sum(self.instructions.values())
