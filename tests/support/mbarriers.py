"""Whether anything else is written into the memory of an mbarrier while it is valid, in the LLVM IR of a compiled kernel.

PTX: an mbarrier object is valid from its init to its inval; until then its memory is for mbarrier operations alone. Triton's
allocator gives the memory of a barrier that is not used any more to the next allocation, invalidated or not.
"""

import re
from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from .llvm_ir import Function, Values, read, size_of, split

BYTES = 8  # of an mbarrier


class Access(NamedTuple):
    """An instruction that touches shared memory.

    kind : "write", "read", "init" or "inval", "barrier" for any other operation of an mbarrier, "unknown"
    address : as written; for an unknown kind the instruction
    size : bytes from each address on
    guard : the condition under which it does so, as written; "" for always
    """

    index: int
    kind: str
    address: str
    size: int
    guard: str = ""


def faults(text: str, boxes: Sequence[int]) -> list[str]:
    """What may destroy an mbarrier of a kernel, and what cannot be told, in words.

    boxes : the bytes that each tensor map copies at a time, in the order of the kernel's parameters

    Reads are left out: what a read finds there, a write has put there. wgmma's operands are read through descriptors, which
    are no addresses.
    """
    function = read(text)
    values = Values(function)
    accesses = list(_accesses(function, values, dict(zip(function.maps, boxes, strict=True))))
    found = [f"unknown access to shared memory: {access.address}" for access in accesses if access.kind == "unknown"]
    inits: dict[int, list[int]] = {}
    invals: dict[int, set[int]] = {}
    for access in accesses:
        if access.kind in ("init", "inval"):
            numbers = values.of(access.address)
            if numbers is None or numbers.base != "@global_smem" or numbers.few is None:
                found.append(f"an mbarrier's {access.kind} has no known address: {access.address}")
                continue
            for address in numbers.few:
                if access.kind == "init":
                    inits.setdefault(address, []).append(access.index)
                elif len(numbers.few) == 1:
                    invals.setdefault(address, set()).add(access.index)
    lives = {address: _life(function, places, invals.get(address, set())) for address, places in inits.items()}
    for access in accesses if inits else ():
        if access.kind != "write":
            continue
        numbers = values.under(access.guard).of(access.address) if access.guard else values.of(access.address)
        if numbers is None:  # never executed
            continue
        if numbers.base != "@global_smem":
            found.append(f"a write whose address has no bounds: {function.instructions[access.index].text[:200]}")
            continue
        ranges = [(low, low) for low in sorted(numbers.few)] if numbers.few is not None else [(numbers.first, numbers.last)]
        for address, life in sorted(lives.items()):
            overlaps = any(low < address + BYTES and address < high + access.size for low, high in ranges)
            if overlaps and access.index in life:
                words = function.instructions[access.index].text[:120]
                found.append(
                    f"the mbarrier at {address} is valid while {words} writes {ranges[0][0]} to {ranges[-1][1] + access.size}"
                )
    return found


def _life(function: Function, inits: Sequence[int], invals: set[int]) -> set[int]:
    """The instructions that may run while a barrier is valid: all but those that its inits surely precede or follow.

    Other warps run code that no init leads to, at any time.
    """
    valid = _reached(function, inits, invals)
    after = _reached(function, inits, set()) - valid
    back: list[list[int]] = [[] for _ in function.instructions]
    for index, targets in enumerate(function.following):
        for target in targets:
            back[target].append(index)
    before: set[int] = set()
    pending = list(inits)
    while pending:
        for index in back[pending.pop()]:
            if index not in before:
                before.add(index)
                pending.append(index)
    return set(range(len(function.instructions))) - after - (before - valid)


def _reached(function: Function, starts: Sequence[int], ends: set[int]) -> set[int]:
    found: set[int] = set()
    pending = [target for start in starts for target in function.following[start]]
    while pending:
        index = pending.pop()
        if index not in found:
            found.add(index)
            pending += () if index in ends else function.following[index]
    return found


def _accesses(function: Function, values: Values, boxes: dict[str, int]) -> Iterator[Access]:
    for index, (_, text) in enumerate(function.instructions):
        if found := re.match(r"(?:volatile )?store (?:volatile )?(.*)", text):
            value, place, *_ = split(found[1])
            if "addrspace(3)" in place:
                yield Access(index, "write", place, size_of(_kind(value)))
        elif text.startswith("load "):
            kind, place, *_ = split(text[5:].removeprefix("volatile "))
            if "addrspace(3)" in place:
                yield Access(index, "read", place, size_of(kind))
        elif text.startswith(("atomicrmw", "cmpxchg")) and "addrspace(3)" in text:
            yield Access(index, "write", re.search(r"ptr addrspace\(3\) .*?(?=, )", text)[0], 8)
        elif found := re.match(r'call .*?asm (?:sideeffect )?"(.*?)", "(.*?)"\((.*)\)', text):
            yield from _asm_accesses(index, *found.groups(), values, boxes)
        elif text.startswith("addrspacecast ptr addrspace(3)"):  # generic addresses are not followed
            yield Access(index, "unknown", text, 0)
        elif text.startswith("call") and "addrspace(3)" in text:
            name, operands = re.search(r"@llvm\.([\w.]+)\((.*)\)", text).groups()
            known = {"nvvm.stmatrix": "write", "nvvm.ldmatrix": "read"}
            kind = next((kind for start, kind in known.items() if name.startswith(start)), "unknown")
            yield Access(index, kind, split(operands)[0] if kind != "unknown" else text[:200], 16)


def _kind(value: str) -> str:
    """The type in front of a value."""
    return re.match(r"[<\[{].*?[>\]}](?= )|ptr addrspace\(\d\)|\w+", value)[0]


def _asm_accesses(
    index: int, template: str, constraints: str, arguments: str, values: Values, boxes: dict[str, int]
) -> Iterator[Access]:
    """Of the statements of inline PTX."""
    outputs = sum(constraint.startswith("=") for constraint in constraints.split(","))
    operands = split(arguments)
    statements = [part.strip() for part in re.split(r";|\\0A|\\09|[{}](?=\\0A)", template)]
    for statement in statements:
        found = re.fullmatch(r"(?:@(!?)(\S+)\s+)?([a-z][\w.:]*)\s*(.*)", statement)
        if not found or "shared" not in found[3] or found[3].startswith(("fence", "wgmma")):
            continue
        inverted, predicate, opcode, rest = found.groups()
        guard = operands[int(predicate[1:]) - outputs] if predicate and predicate.startswith("$") and not inverted else ""
        places = [int(number) for number in re.findall(r"\[\s*\$(\d+)", rest)]
        address = operands[places[0] - outputs] if places else ""
        if not places:
            yield Access(index, "unknown", statement, 0)
        elif opcode.startswith("mbarrier."):
            name = opcode.split(".")[1]
            yield Access(index, name if name in ("init", "inval") else "barrier", address, BYTES)
        elif re.match(r"cp\.async\.bulk\.tensor\.\dd\.shared::\w+\.global\.", opcode):
            map_of = values.of(operands[places[1] - outputs])
            size = boxes.get(map_of.base if map_of else "", 0)
            yield Access(index, "write" if size else "unknown", address if size else statement, size, guard)
        elif re.match(r"cp\.async\.bulk\.tensor\.\dd\.global\.shared::cta", opcode):
            yield Access(index, "read", operands[places[1] - outputs], 0)
        elif found := re.fullmatch(r"(st|ld)\.shared(?:::cta)?(?:\.v(\d))?\.[bufs](\d+)", opcode):
            offset = re.search(r"\[\s*\$\d+\s*\+\s*(\d+)\s*\]", rest)
            size = int(found[2] or 1) * int(found[3]) // 8 + int(offset[1] if offset else 0)
            yield Access(index, "write" if found[1] == "st" else "read", address, size, guard)
        else:
            yield Access(index, "unknown", statement, 0)


def boxes_of(signature: Sequence[str]) -> list[int]:
    """The bytes that each tensor map of a kernel's signature copies at a time, at most."""
    sizes = {"fp8e4nv": 1, "fp8e5": 1, "i8": 1, "u8": 1, "fp16": 2, "bf16": 2, "i32": 4, "fp32": 4}
    found = [re.match(r"tensordesc<(\w+)\[([\d, ]+)\]", kind) for kind in signature]
    return [sizes[kind[1]] * prod(map(int, kind[2].split(","))) for kind in found if kind]
