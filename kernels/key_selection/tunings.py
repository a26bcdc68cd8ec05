"""The tuning tables of select_keys. What was tried for it: docs/design/selection.md."""

import math
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
    options : further options of a launch, which one backend alone knows
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
    num_warps : warps or waves of a program that filters
    planes : of the logits of a thread: 8 or 16
    sample : logits that are looked at first, a power of two
    resident : programs that filter whole rows, as many as an SM or CU holds
    few_resident : of those that filter sections, into which rows are cut where they are few
    section : logits of a section at least
    ahead : a block is loaded while the one before it is looked at
    options : as in :class:`Tuning`, of the launch that filters whole rows, and of the one that selects from their lists
    cut_options : of those on rows that are cut
    gluon_options : of the Gluon launch that filters sections
    """

    block_logits: int
    num_warps: int
    planes: int
    sample: int
    resident: int
    few_resident: int
    section: int
    ahead: bool = False
    options: tuple[Options, Options] = ((), ())
    cut_options: tuple[Options, Options] = ((), ())
    gluon_options: Options = ()

    def for_more_programs(self) -> "LongRows":
        """The row for sections of more rows than there are SMs, for the Gluon launch: as many programs as of whole rows."""
        return self._replace(few_resident=self.resident, ahead=False, gluon_options=self.options[0])

    def room(self, top_k: int, columns: int) -> int:
        """Candidates that a list has room for: as many of ``columns`` logits as may reach a bar, by what a sample can tell.

        Of the sample up to an eighth more reach the bar than were looked for (:func:`.device.filtering.sample_bar`). They are
        a Poisson variable, whose mean is no more than ROOM_MARGIN of its deviations larger, as good as always.
        """
        part = max(columns / self.sample, 1.0)
        reached = 1.125 * (top_k / part + BAR_MARGIN * math.sqrt(top_k / part) + 2)
        most = math.ceil((reached + ROOM_MARGIN * math.sqrt(reached)) * part)
        return min(MOST_ROOM, max(self.block_logits, 1 << (max(most, 2 * top_k) - 1).bit_length()))

    def list_warps(self, room: int) -> int:
        """Warps of a program that selects from lists: 32 candidates a thread where they are full, and mostly 16 or fewer."""
        return max(1, min(16, room // 1024))

    def sections(self, rows: int, columns: int, multiprocessors: int) -> int:
        """In how many each row is cut: enough for all SMs, and so that few of them idle while the last programs run."""
        most = max(1, min(columns // self.section, MOST_SECTIONS))
        fewest = max(1, min(most, self.few_resident * multiprocessors // max(rows, 1)))

        def filled(sections: int) -> float:
            turns = rows * sections / (multiprocessors * (self.resident if sections == 1 else self.few_resident))
            return turns / max(1, math.ceil(turns))

        sections = range(fewest, most + 1)
        return next((number for number in sections if filled(number) >= FILLED), max(sections, key=filled))


BAR_MARGIN = 5.0  # standard deviations of a sample's count by which its bar is lower than where top_k should reach it
ROOM_MARGIN = 5.0
MOST_ROOM = 16384  # as a block's logits: what sixteen warps can hold in registers
MOST_SECTIONS = 128  # a power of two
FILLED = 0.9  # of the places for programs, as a share, is enough

LONG: dict[str, LongRows] = {
    # Measured on an H200 with Triton 3.6.0, against no other row: 4096 x 65536 for 2048 keys 436 us. Nothing spills there.
    "sm90": LongRows(
        block_logits=4096,
        num_warps=8,
        planes=16,
        sample=4096,
        resident=4,
        few_resident=3,
        section=8192,
        ahead=True,
        options=((("maxnreg", 64),), (("maxnreg", 80),)),
        cut_options=((("maxnreg", 80),), (("maxnreg", 128),)),
        # 8 x 131072 for 2048 keys 17.4 us; with four programs an SM and no block loaded ahead 18.4, but 256 x 65536 50.5 and
        # not 55.2 (for_more_programs).
        gluon_options=(("maxnreg", 80),),
    ),
    # Compiled, and for gfx950 emulated, never timed: as sm90.
    ANY: LongRows(block_logits=4096, num_warps=8, planes=16, sample=4096, resident=2, few_resident=2, section=8192),
}


def long_rows(target: compat.Target) -> LongRows:
    """The row for a target."""
    return row_for(LONG, target.label)


def gluon_hopper(problem: "Problem") -> LongRows:
    """The row for a problem's target: sections are those of the classic variant, whose launch selects from their lists."""
    return long_rows(compat.capabilities(problem.device).target)


def classic(problem: "Problem") -> Tuning:
    """The row for a problem's target."""
    return for_target(compat.capabilities(problem.device).target)


def for_target(target: compat.Target) -> Tuning:
    """The row for a target."""
    return row_for(CLASSIC, target.label)


def max_top_k(target: compat.Target) -> int:
    """The most keys to select on a target: half of what the longest list has room for, since more than top_k reach a bar."""
    return for_target(target).block_logits // 2
