"""The row of a tuning table: how the work of a problem is cut, and what is asked of the compiler.

Each operation's ``tunings`` has the tables of its variants: plain data, which needs no Triton. A table of a variant for any GPU
has a row for each target that is known to want one, by the target's label ("sm90"), and one for all others, by ANY. A table of
a variant for one architecture goes by padded heads. Beside a row stands why it is so: measured where, or chosen by which count.
"""

from collections.abc import Callable, Hashable, Mapping
from functools import cache, wraps
from typing import Any, NamedTuple, Protocol, TypeVar

from capgate import compat
from capgate.compat.offline.occupancy import LDS

Options = tuple[tuple[str, Any], ...]  # pairs and not a dictionary, so that a row can be hashed
Row = TypeVar("Row")
P = TypeVar("P", bound=Hashable)
C = TypeVar("C", bound="Cut")

ANY = ""  # in place of a target's label: every target that has no row of its own


def simd_waves(count: int) -> Options:
    """The option that a SIMD holds so many waves, each with its part of 512 registers, on gfx1250 of 1024.

    Compiled, never timed: left to itself Triton 3.6.0 keeps accumulators in AGPRs; asked for fewer, each Triton pads to fewer.
    """
    return (("waves_per_eu", count),)


class Tuning(NamedTuple):
    """How the logits of a problem are cut; other operations' rows have these names for these things, too.

    block_keys : keys that a program takes at a time: a tile
    columns : rows x padded heads of a program's products; in a table the most
    num_warps : warps or waves of a program that multiply; in a table the most
    num_stages : tiles that lie in shared memory or LDS, or are on their way there
    resident : programs of so many warps that one SM or CU holds
    options : further launch options, which one backend alone knows
    rows : query rows that a program takes at a time; 0 in a table, whose ``columns`` have room for them

    None where a kernel has no such thing:

    part_keys : keys of a tile that a wave scores at a time
    samples : groups whose windows are read to share out the work
    group_cost : what another group of rows costs, in eighths of a tile
    registers_thread : 32-bit registers of each thread before the warps specialise
    registers_consumer : of each thread that multiplies, from then on
    registers_producer : of each thread that copies, from then on
    passes : products of each tile of keys, every one with ``rows`` rows
    """

    block_keys: int
    columns: int
    num_warps: int
    num_stages: int
    resident: int
    options: Options = ()
    rows: int = 0
    part_keys: int | None = None
    samples: int | None = None
    group_cost: int | None = None
    registers_thread: int | None = None
    registers_consumer: int | None = None
    registers_producer: int | None = None
    passes: int | None = None

    def with_rows(self, rows: int, padded_heads: int) -> "Tuning":
        """A table's row for a problem: with so many query rows, or as many as its columns have room for, but one at least."""
        rows = max(1, min(rows, self.columns // padded_heads))
        return self._replace(rows=rows, columns=rows * padded_heads)


class Cut(Protocol):
    """A row that is cut to heads and query rows, of whichever operation; names as in :class:`Tuning`."""

    @property
    def block_keys(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def num_warps(self) -> int: ...
    @property
    def num_stages(self) -> int: ...
    @property
    def resident(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def with_rows(self: C, rows: int, padded_heads: int, /) -> C: ...
    def _replace(self: C, *, columns: int = ..., num_warps: int = ..., resident: int = ...) -> C: ...


def lds_words(row: Tuning, block_size: int) -> int:
    """What :func:`in_requests` asks: a scale, and of tiles that lie in several blocks entries of the table."""
    return 1 if block_size % row.block_keys == 0 else 2


def in_requests(row: C, next_n: int, padded_heads: int, key_bytes: int, words: int) -> C:
    """A row of a paged kernel for CDNA4, cut to the rows of a request: fewer waves, of which a CU holds more programs.

    Where a request takes several programs, they have half as many rows if the last one would use no more than half of its own.

    next_n : or how many rows of it share a list
    key_bytes : of a key, but for its scales
    words : in LDS for each lane in every stage, besides keys: a scale, and an entry of the table and of lists
    """
    wave_columns = row.columns // row.num_warps
    most_waves = min(row.num_warps, row.block_keys * key_bytes // 1024)  # each has keys to copy, 1024 bytes at a time
    wanted = max(1 << (next_n - 1).bit_length(), 32 // padded_heads)
    tune = row._replace(columns=most_waves * wave_columns).with_rows(wanted, padded_heads)
    if next_n > tune.rows and 0 < next_n % tune.rows <= tune.rows // 2:
        tune = tune.with_rows(tune.rows // 2, padded_heads)
    waves = max(1, tune.columns // wave_columns)
    lanes = 64 * waves
    weights_bytes = 4 * max(tune.columns, lanes)
    lds_bytes = row.num_stages * (row.block_keys * key_bytes + 4 * words * lanes) + weights_bytes
    size, granule = LDS["gfx950"]
    resident = min(row.resident * row.num_warps // waves, size // (-(-lds_bytes // granule) * granule))
    return tune._replace(num_warps=waves, resident=resident)


def row_for(table: Mapping[str, Row], label: str) -> Row:
    """The row of a target by its label, or the one for any."""
    return table[label] if label in table else table[ANY]


def loadable(operation: "compat.Operation[P]", variant: str) -> Callable[[Callable[[P], Row]], Callable[[P], Row]]:
    """Put what CAPGATE_TUNINGS loads for a variant's problem over what a function takes from its table, which is remembered."""

    def decorate(from_table: Callable[[P], Row]) -> Callable[[P], Row]:
        remembered = cache(from_table)

        @wraps(from_table)
        def tuning(problem: P) -> Row:
            row: Row = remembered(problem)
            loaded = operation.loaded(variant, problem)
            if loaded is None:
                return row
            over: Row = loaded.over(row)
            return over

        return tuning

    return decorate
