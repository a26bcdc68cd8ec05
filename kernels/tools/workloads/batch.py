"""What the commands ask of a workload and of its batch, whichever operation they are for."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Protocol

import torch

Call = Callable[[], object]


class Batch(Protocol):
    """The operands of one call on a device, with the work that they mean."""

    @property
    def flops(self) -> int:
        """Two for each of the D products of a head's dot, over the cells that a row sees."""

    def least_bytes(self, clean_logits: bool) -> int:
        """The fewest bytes a call moves: what it looks at of every operand once, and every cell it has to write once."""

    def columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first column of the output that each row sees, and the first one that it does not see any more, [rows]."""

    def output(self) -> torch.Tensor:
        """A new output, which the calls of all variants may share."""

    def prepare(self, variant: str, clean_logits: bool) -> Call | None:
        """What a serving step does once for all of its layers, None where there is no such thing."""

    def call(self, variant: str | None, clean_logits: bool, out: torch.Tensor) -> Call | None:
        """The call of one of our variants, of the one that runs by default for None; None where there is no such call."""


class Workload(Protocol):
    """A named shape of one operation.

    operation : as capgate.kernels calls it, a key of PEERS and of the tables
    size : in figures, for a table
    moves : what its bytes are held against: "copy" for a device copy, "read" for a device read
    """

    @property
    def name(self) -> str: ...
    @property
    def words(self) -> str: ...
    @property
    def operation(self) -> Any: ...
    @property
    def moves(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def heads(self) -> int: ...

    def facts(self) -> dict[str, int]:
        """Its sizes by name."""

    def make(self, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Batch:
        """Random activations, really quantised, on ``device``."""


def sizes(workload: Any) -> dict[str, Any]:
    """The fields of a workload of several calls by name, all but what only people read."""
    return {name: value for name, value in asdict(workload).items() if name not in ("name", "words")}
