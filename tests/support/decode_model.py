"""What the slot model makes of decode: the longer one of its bytes and of its loops, times what published times deviate by.

    python tests/support/decode_model.py        # the table of docs/design/gfx950_model.md, by the Triton at hand

A model to rank with, never a claim. Left out: how blocks lie in memory, the filling with -inf, and what the start costs.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, as pytest has it there
from capgate.compat.markdown import table
from support.slot_model import CLOCK, COMPUTE_UNITS, PEERS, SCENARIOS, SIMDS, Loop, Machine, loop_of, possible, read_ops

TRITON = PEERS[-1]  # by which scenarios are possible at all, and the public kernel was counted
HBM_BYTES = 8e12  # a second, of an MI355X: AMD, its data sheet
KEY_BYTES = 132  # 128 of fp8 and a scale


class Decode(NamedTuple):
    """A call with 64 heads of 128 dims: every row sees ``keys`` keys, and they are read once."""

    requests: int
    keys: int
    next_n: int

    @property
    def bytes(self) -> int:
        return self.requests * self.keys * (KEY_BYTES + 4 * self.next_n)

    def units(self, rows: int) -> float:
        """Of 32 keys of a row, for each SIMD, where programs score so many rows: also those that a request does not have."""
        scored = -(-self.next_n // rows) * rows
        return self.requests * self.keys * scored / 32 / (COMPUTE_UNITS * SIMDS)


# aiter's pull request 5216 again, 64 heads assumed; the second call has a program score all rows of a request.
PUBLISHED = {Decode(16, 65664, 1): 26.6, Decode(16, 131072, 6): 139.0}
# Of that library's kernel for preshuffled caches, by Triton 3.9.0, only counts are known: 107 vector instructions (97 and 10 of
# pairs assumed), 10 scalar ones, 512 clocks of the matrix core in 16 instructions, two waves. They are spread evenly here.
PUBLIC = Loop(1.0, 2.0, 4, 1.0, read_ops(" ".join(["m32 6*v s", "m32 6*v p"] * 8 + ["2*v 2*p 2*s"])))


def of_loop(loop: Loop, rows: int, call: Decode, machine: Machine) -> float:
    """Microseconds of the loop at the peak clock, in programs of so many rows."""
    return call.units(rows) * loop.clocks(max(1, round(loop.waves)), machine) / CLOCK * 1e6


def microseconds(loop: Loop, rows: int, call: Decode, machine: Machine) -> float:
    """The bytes at HBM's peak or the loop, whichever takes longer."""
    return max(call.bytes / HBM_BYTES * 1e6, of_loop(loop, rows, call, machine))


def factors(scenario: str) -> list[float]:
    """Published over modelled, of both published times."""
    return [us / microseconds(PUBLIC, 1, call, SCENARIOS[scenario]) for call, us in PUBLISHED.items()]


def interval(loop: Loop, rows: int, call: Decode) -> tuple[float, float]:
    """Microseconds between which a call's time lies, if it deviates from the model as the published ones do: modelled."""
    times = {name: microseconds(loop, rows, call, SCENARIOS[name]) for name in possible(TRITON)}
    low, high = zip(*((us * min(factors(name)), us * max(factors(name))) for name, us in times.items()), strict=True)
    return min(low), max(high)


def paged_loop(next_n: int) -> tuple[Loop, dict[str, Any]]:
    """The hot loop of capgate's variant for blocks of 64 keys, and its tuning."""
    from capgate.compat.offline.child import describe
    from capgate.kernels.paged_mqa_logits import gluon_cdna4
    from capgate.kernels.paged_mqa_logits.operation import Problem, example_call
    from support.emulated_mqa import TARGET
    from support.emulated_paged_mqa import VARIANTS
    from support.emulation import compile_launch

    problem = Problem(TARGET, 64, 128, "float8_e4m3fn", False, 64, next_n)
    call = example_call(problem)
    (launch,) = gluon_cdna4.prepare(problem, *call.operands, **call.options)
    code, tuning = compile_launch(launch, VARIANTS["gluon_cdna4"].make_source), gluon_cdna4.tuning(problem)._asdict()
    waves = describe(code, TARGET, call, "")["waves_per_simd"]
    return loop_of(code.asm["amdgcn"], tuning["num_warps"], waves), tuning


def rows_of_table() -> Iterator[list[str]]:
    from capgate.compat import versions

    triton = versions.find("triton").text or ""
    for call, published in PUBLISHED.items():
        loop, tuning = paged_loop(call.next_n)
        low, high = interval(loop, tuning["rows"], call)
        loops = [of_loop(loop, tuning["rows"], call, SCENARIOS[name]) for name in possible(TRITON)]
        yield [
            f"{call.requests} x {call.keys}, next_n {call.next_n}",
            triton,
            f"{tuning['rows']} rows, {loop.waves:g} waves",
            f"{call.bytes / HBM_BYTES * 1e6:.1f}",
            f"{min(loops):.1f} to {max(loops):.1f}",
            f"{low:.0f} to {high:.0f}",
            f"{published:g}",
        ]


HEADER = ["call", "Triton", "program", "bytes, us", "loop, us", "capgate, us, modelled", "aiter, us, published"]


def main() -> None:
    print(table(HEADER, ["---"] * len(HEADER), rows_of_table()))
    for name in possible(TRITON):
        print(f"{name}: published / modelled {', '.join(f'{factor:.2f}' for factor in factors(name))}")


if __name__ == "__main__":
    main()
