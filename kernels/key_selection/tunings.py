"""The tuning table of select_keys. What was tried for it: docs/design/selection.md."""

from typing import TYPE_CHECKING, NamedTuple

from capgate import compat

from ..common.tuning import ANY, Options, row_for

if TYPE_CHECKING:
    from .operation import Problem

SMALLEST_BLOCK = 512


class Tuning(NamedTuple):
    """How the selection from a row of logits is cut; names as in :mod:`..common.tuning`.

    block_logits : logits of a row that a program takes at a time, a power of two; in a table the most
    num_warps : warps or waves of a program that takes as many
    planes : of the logits of a thread, adjacent ones: 16 at most, which have a bit each in a word
    options : further options of a launch on logits, which one backend alone knows; one on candidates has none
    """

    block_logits: int
    num_warps: int
    planes: int
    options: Options = ()

    def for_columns(self, columns: int) -> "Tuning":
        """The row for a number of columns: a whole row of logits is a block if it is not too long."""
        block = min(max(SMALLEST_BLOCK, 1 << max(columns - 1, 0).bit_length()), self.block_logits)
        return self._replace(block_logits=block, num_warps=max(1, self.num_warps * block // self.block_logits))


# --- classic, by target; for every top_k and number of columns alike ------------------------------------------------------

CLASSIC: dict[str, Tuning] = {
    # Measured on an H100 with Triton 3.6.0: the fastest of five rows; with 96 registers five programs of 8192 share an SM.
    "sm90": Tuning(block_logits=16384, num_warps=8, planes=16, options=(("maxnreg", 96),)),
    # Compiled and, for gfx950, emulated, never timed: as sm90.
    ANY: Tuning(block_logits=16384, num_warps=8, planes=16),
}


# --- rows that are longer than a block ------------------------------------------------------------------------------------


class LongRows(NamedTuple):
    """How the selection from a row that is longer than a block is cut.

    block_logits : logits that a program takes at a time, a power of two
    num_warps : warps or waves of a program
    planes : of the logits of a thread: 4, 8 or 16
    sample : logits that are looked at first, a power of two
    programs : wanted for each SM or CU; where rows are fewer they are cut in sections
    section : logits of a section at least
    last_warps : warps of a program that selects from the lists of several sections
    ahead : a block is loaded while the one before it is looked at
    options : as in :class:`Tuning`
    """

    block_logits: int
    num_warps: int
    planes: int
    sample: int
    programs: int
    section: int
    last_warps: int
    ahead: bool = False
    options: Options = ()

    def room(self, top_k: int) -> int:
        """Candidates that a list has room for: half as many more as are appended as a rule, and a block; 16 a thread."""
        return min(MOST_ROOM, 1 << (2 * top_k + self.block_logits - 1).bit_length())

    def sections(self, rows: int, columns: int, multiprocessors: int) -> int:
        """In how many each row is cut."""
        wanted = -(-self.programs * multiprocessors // max(rows, 1))
        return max(1, min(wanted, columns // self.section, MOST_SECTIONS))


MOST_ROOM = 16384  # as a block's logits: what eight warps can hold in registers
MOST_SECTIONS = 64

LONG: dict[str, LongRows] = {
    "sm90": LongRows(
        block_logits=4096,
        num_warps=8,
        planes=16,
        sample=4096,
        programs=2,
        section=8192,
        last_warps=16,
        options=(("maxnreg", 96),),
    ),
    ANY: LongRows(block_logits=4096, num_warps=8, planes=16, sample=4096, programs=2, section=8192, last_warps=16),
}


def long_rows(problem: "Problem") -> LongRows:
    """The row for a problem's target."""
    return row_for(LONG, compat.capabilities(problem.device).target.label)


def classic(problem: "Problem") -> Tuning:
    """The row for a problem's target."""
    return for_target(compat.capabilities(problem.device).target)


def for_target(target: compat.Target) -> Tuning:
    """The row for a target."""
    return row_for(CLASSIC, target.label)


def max_top_k(target: compat.Target) -> int:
    """The most keys to select on a target: a program must leave at most half of its block for the next launch."""
    return for_target(target).block_logits // 2
