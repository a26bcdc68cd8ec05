"""The loops of a program, found from where its instructions lead."""

from collections.abc import Sequence
from typing import NamedTuple


class Flow(NamedTuple):
    """Where control may go after an instruction: the indices of other instructions, and whether to the next one."""

    targets: Sequence[int]
    falls_through: bool


def natural_loops(flow: Sequence[Flow]) -> list[frozenset[int]]:
    """The instructions of each loop: its head, which every way into the loop passes, and what leads back to the head.

    Compilers move rarely taken parts of a loop behind the function's end, so the text between a label and a branch back to
    it may be less than the loop, or more. Loops with several ways in are not found.
    """
    if not flow:
        return []
    starts = _block_starts(flow)
    block_of = {start: block for block, start in enumerate(starts)}
    ends = [*starts[1:], len(flow)]
    after: list[list[int]] = []
    for end in ends:
        last = flow[end - 1]
        targets = [*last.targets, *([end] if last.falls_through else [])]
        after.append([block_of[target] for target in targets if target in block_of])
    before: list[list[int]] = [[] for _ in starts]
    for block, successors in enumerate(after):
        for successor in successors:
            before[successor].append(block)

    dominators = _dominators(before)
    loops: dict[int, set[int]] = {}
    for tail, successors in enumerate(after):
        for head in successors:
            if dominators[tail] >> head & 1:
                body = loops.setdefault(head, {head})
                pending = [tail]
                while pending:
                    block = pending.pop()
                    if block not in body:
                        body.add(block)
                        pending.extend(before[block])
    return [frozenset(index for block in body for index in range(starts[block], ends[block])) for body in loops.values()]


def _block_starts(flow: Sequence[Flow]) -> list[int]:
    """The first instruction of each stretch that runs from its start to its end."""
    starts = {0}
    for index, (targets, falls_through) in enumerate(flow):
        starts.update(targets)
        if targets or not falls_through:
            starts.add(index + 1)
    return sorted(start for start in starts if start < len(flow))


def _dominators(before: Sequence[Sequence[int]]) -> list[int]:
    """For each block the blocks on every way to it, as a set of bits; a block that nothing leads to is an entry."""
    everything = (1 << len(before)) - 1
    found = [everything if block and predecessors else 1 << block for block, predecessors in enumerate(before)]
    changed = True
    while changed:
        changed = False
        for block, predecessors in enumerate(before):
            if block == 0 or not predecessors:
                continue
            meet = everything
            for predecessor in predecessors:
                meet &= found[predecessor]
            meet |= 1 << block
            changed |= meet != found[block]
            found[block] = meet
    return found
