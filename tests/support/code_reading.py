"""What the tests look for in compiled kernels: in the TTGIR loads in loops and what becomes of a schedule's words, in PTX
fences between copies and products, in the SASS registers of wgmma's descriptors, in AMD's assembly spills.
"""

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


def uses_of_the_schedule(ttgir: str) -> list[tuple[str, bool]]:
    """What is done with the words that are loaded from %schedule: each operation, and whether 0 is an operand of it, too."""
    pointers, loaded, uses = {"%schedule"}, [], []
    for line in ttgir.splitlines():
        found = re.match(r"\s*(%\w+) = ([\w.]+) (.*)", line)
        name, operation, operands = found.groups() if found else ("", "", line)
        read = re.findall(r"%\w+", operands)
        uses += [(operation, "%c0_i32" in read) for operand in read if operand in loaded]
        if operation in ("tt.addptr", "tt.load") and read[0] in pointers:
            (loaded.append if operation == "tt.load" else pointers.add)(name)
    return uses


# Of the two words where a worker begins, and the two where the next one does: each is cut to 0 or more, whatever it holds.
EVERY_WORD_IS_CUT = [("arith.maxsi", True)] * 4


def unfenced_products(ptx: str) -> int:
    """How many wgmmas follow a wait for asynchronous copies with no fence between the proxies of shared memory in between."""
    unfenced, fenced = 0, True
    for line in ptx.splitlines():
        if "cp.async.wait_group" in line:
            fenced = False
        elif "fence.proxy.async" in line:
            fenced = True
        unfenced += "wgmma.mma_async" in line and not fenced
    return unfenced


def spilled_vgprs(amdgcn: str) -> int:
    """The vector registers that a kernel spills, in the words of the assembler's metadata."""
    return int(re.search(r"\.vgpr_spill_count:\s*(\d+)", amdgcn)[1])


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


def released_behind_fences(code: Listing) -> bool:
    """Whether each mbarrier that is arrived at next after all wgmmas are waited for is so behind a fence and then a barrier."""
    steps = [f"{step.mnemonic} {step.operands}" for step in code.instructions]
    waits = [index for index, step in enumerate(steps) if step.startswith("WARPGROUP.DEPBAR") and step.endswith("0x0")]
    order = re.compile(r"FENCE\.VIEW\.ASYNC.*BAR\.SYNC.*SYNCS\.ARRIVE", re.DOTALL)
    until = [next(index for index in range(wait, len(steps)) if steps[index].startswith("SYNCS.ARRIVE")) for wait in waits]
    return bool(waits) and all(order.search("\n".join(steps[a : b + 1])) for a, b in zip(waits, until, strict=True))


def _written(mnemonic: str, operands: str) -> set[int]:
    """The uniform registers that an instruction writes."""
    first = re.match(r"UR(\d+)(?=,|$)", operands)
    if not first:
        return set()
    pair = mnemonic.endswith(".64") or ".WIDE" in mnemonic
    return {int(first[1]) + part for part in range(2 if pair else 1)}
