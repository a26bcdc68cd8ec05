"""What the tests look for in compiled kernels: loads in loops of the TTGIR, registers of wgmma's descriptors in the SASS."""

import re

from capgate.compat.offline.disassembly import Listing, flow_of


def loads_in_loops(ttgir: str) -> int:
    """How many loads stand in loops, at any depth."""
    loads, regions = 0, [False]  # whether each region that is open lies in a loop
    for line in ttgir.splitlines():
        loads += regions[-1] and "tt.load" in line
        opened = line.count("{") - line.count("}")
        if opened > 0:
            regions.append(regions[-1] or re.search(r"\bscf\.(for|while)\b", line) is not None)
        elif opened < 0:
            regions.pop()
    return loads


def undefined_descriptors(code: Listing) -> list[str]:
    """The wgmmas with a descriptor in uniform registers that some way to them leaves unwritten.

    A wgmma reads four from ``gdesc[UR8]`` on: two for the descriptor of each operand.
    """
    flow = flow_of(code)
    written: list[set[int] | None] = [{-1} if index == 0 else None for index in range(len(flow))]  # before it, on every way
    pending = [0]
    while pending:
        index = pending.pop()
        step, (targets, falls_through) = code.instructions[index], flow[index]
        after = (written[index] or set()) | (set() if step.predicate else _written(step.mnemonic, step.operands))
        for following in [*targets, *([index + 1] if falls_through and index + 1 < len(flow) else [])]:
            known = written[following]
            if known is None or not known <= after:
                written[following] = after if known is None else known & after
                pending.append(following)
    found = []
    for step, known in zip(code.instructions, written, strict=True):
        first = re.search(r"gdesc\[UR(\d+)\]", step.operands)
        if first and known is not None and not {int(first[1]) + part for part in range(4)} <= known:
            found.append(f"{step.mnemonic} {step.operands}")
    return found


def _written(mnemonic: str, operands: str) -> set[int]:
    """The uniform registers that an instruction writes."""
    first = re.match(r"UR(\d+)(?=,|$)", operands)
    if not first:
        return set()
    pair = mnemonic.endswith(".64") or ".WIDE" in mnemonic
    return {int(first[1]) + part for part in range(2 if pair else 1)}
