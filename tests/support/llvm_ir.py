"""Reading LLVM IR as Triton leaves it for the back end: a kernel's instructions, where control goes, and which numbers a value
may be: enough to bound the addresses that compilers make for tiles, rings of slots and threads' own cells.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from copy import copy
from itertools import product
from typing import NamedTuple

FEW = 32  # numbers that are listed one by one
PATIENCE = 3 * FEW  # changes, after which a value's numbers are taken to grow for ever
LARGEST = 2**31  # at which signed and unsigned numbers of 32 bits part


class Instruction(NamedTuple):
    """One instruction: the value that it makes or "", and the words behind, without attributes of debuggers."""

    result: str
    text: str


class Function(NamedTuple):
    """A kernel's instructions, the indices of those that may follow each, its parameters of 128 bytes, and its threads."""

    instructions: tuple[Instruction, ...]
    following: tuple[tuple[int, ...], ...]
    maps: tuple[str, ...]
    threads: int


_VALUE = r"[%@][-\w.$]+"


def read(text: str) -> Function:
    """The one kernel of a module."""
    head, body = re.search(r"^define (.*?) \{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL).groups()
    body = re.sub(r"\[\n\s+(.*?)\n\s+\]", lambda table: f"[ {' '.join(table[1].split())} ]", body, flags=re.DOTALL)
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in body.splitlines():
        line = re.sub(r", !dbg !\d+.*", "", line)
        if label := re.match(r"([-\w.$]+):", line):
            labels[label[1]] = len(instructions)
        elif line.strip():
            result, words = re.fullmatch(rf"\s*(?:({_VALUE}) = )?(?:(?:tail|musttail|notail) )?(.*)", line).groups()
            instructions.append(Instruction(result or "", words))
    following = []
    for index, (_, words) in enumerate(instructions):
        name = words.partition(" ")[0]
        ends = name in ("br", "switch", "ret", "unreachable")
        targets = re.findall(r"label %([-\w.$]+)", words) if name in ("br", "switch") else []
        following.append(tuple(labels[target] for target in targets) if ends else (index + 1,))
    threads = re.search(r'"nvvm\.reqntid"="(\d+)', text)
    maps = re.findall(rf"ptr byval\(\[128 x i8\]\)[^%]*({_VALUE})", head)
    return Function(tuple(instructions), tuple(following), tuple(maps), int(threads[1]) if threads else 1024)


_MARK = re.compile(r"[,()\[\]{}<>]")


def split(text: str) -> list[str]:
    """At the commas outside of brackets of any kind."""
    parts, depth, begin = [], 0, 0
    for mark in _MARK.finditer(text):  # instructions of warp-specialised kernels have thousands of letters between them
        character = mark[0]
        if character != ",":
            depth += 1 if character in "([{<" else -1
        elif depth == 0:
            parts.append(text[begin : mark.start()])
            begin = mark.end()
    return [part.strip() for part in (*parts, text[begin:]) if part.strip()]


def size_of(kind: str) -> int:
    """Bytes of a type."""
    if found := re.fullmatch(r"[<\[](\d+) x (.*)[>\]]", kind):
        return int(found[1]) * size_of(found[2])
    if found := re.fullmatch(r"i(\d+)", kind):
        return -(-int(found[1]) // 8)
    return {"half": 2, "bfloat": 2, "float": 4, "double": 8, "ptr": 8, "ptr addrspace(3)": 4}[kind]


# --- numbers ----------------------------------------------------------------------------------------------------------------


class Numbers(NamedTuple):
    """Numbers one by one in ``few``, or else ``low`` plus any part of the bits of ``bits``; of an address, behind ``base``.

    base : the name of what the numbers are added to, such as @global_smem; "" for plain numbers
    """

    base: str
    few: frozenset[int] | None
    low: int = 0
    bits: int = 0

    @property
    def first(self) -> int:
        return self.low if self.few is None else min(self.few)

    @property
    def last(self) -> int:
        return self.low + self.bits if self.few is None else max(self.few)

    @property
    def only(self) -> int | None:
        """The one plain number that it can be, or None."""
        return next(iter(self.few)) if self.few is not None and len(self.few) == 1 and not self.base else None


ANY = Numbers("", None, 0, 2**64 - 1)


def listed(numbers: Iterable[int], base: str = "") -> Numbers:
    """Of few numbers each; of more, what covers them."""
    found = frozenset(numbers)
    return Numbers(base, found) if len(found) <= FEW else spread(Numbers(base, found))


def spread(numbers: Numbers) -> Numbers:
    """The same numbers, or more, as bits."""
    if numbers.few is None:
        return numbers
    bits = 0
    for number in numbers.few:
        bits |= number - min(numbers.few)
    return Numbers(numbers.base, None, min(numbers.few), bits)


def up_to(last: int) -> Numbers:
    return Numbers("", None, 0, (1 << last.bit_length()) - 1)


def bounded(base: str, low: int, bits: int) -> Numbers:
    """Numbers as bits; any number where they may leave the 32 bits of an address in shared memory."""
    return Numbers(base, None, low, bits) if low >= -LARGEST and low + bits < 2 * LARGEST else ANY


def _summed(one: int, other: int) -> int:
    """Bits that hold every sum of a part of each."""
    alike = one | other
    return alike if not one & other else ((1 << (one + other).bit_length()) - 1) & ~((alike & -alike) - 1)


def join(one: Numbers | None, other: Numbers) -> Numbers:
    if one is None or one == other:
        return other
    if one.base != other.base or ANY in (one, other):
        return ANY
    if one.few is not None and other.few is not None:
        return listed(one.few | other.few, one.base)
    one, other = spread(one), spread(other)
    low = min(one.low, other.low)
    return bounded(one.base, low, _summed(one.bits | other.bits, (one.low - low) | (other.low - low)))


def add(one: Numbers, other: Numbers) -> Numbers:
    if (one.base and other.base) or ANY in (one, other):
        return ANY
    base = one.base or other.base
    if one.few is not None and other.few is not None:
        return listed({a + b for a, b in product(one.few, other.few)}, base)
    one, other = spread(one), spread(other)
    return bounded(base, one.low + other.low, _summed(one.bits, other.bits))


def times(one: Numbers, other: Numbers) -> Numbers:
    if other.only is None:
        one, other = other, one
    factor = other.only
    if one.base or factor is None:
        return _exact(int.__mul__, one, other) or ANY
    if one.few is not None:
        return listed({number * factor for number in one.few})
    if factor <= 0 or one == ANY:
        return ANY
    bits = one.bits * factor
    filled = bits if factor & (factor - 1) == 0 else _summed(bits, bits)
    return bounded("", one.low * factor, filled)


def _exact(function: Callable[[int, int], int], one: Numbers, other: Numbers) -> Numbers | None:
    """A function of every pair, if they are few plain numbers."""
    if one.base or other.base or one.few is None or other.few is None:
        return None
    return listed({function(a, b) for a, b in product(one.few, other.few)})


def _possible(numbers: Numbers) -> int:
    """The bits that may be 1 in any of the numbers; all where they are not known to be 0 or more."""
    if numbers.base or numbers.first < 0:
        return ANY.bits
    numbers = spread(numbers)
    return numbers.low | numbers.bits if not numbers.low & numbers.bits else (1 << numbers.last.bit_length()) - 1


class Values:
    """The numbers of every value of a function, from all that its instructions may make it; ``of`` an operand.

    What is read from memory, or made by an instruction that is not known here, may be any number.
    """

    def __init__(self, function: Function) -> None:
        self._threads = function.threads
        self._given: dict[str, Numbers] = {}
        self._made = {each.result: each.text for each in function.instructions if each.result}
        self._found: dict[str, Numbers] = {name: Numbers(name, frozenset([0])) for name in function.maps}
        readers: dict[str, set[str]] = {}
        for result, text in self._made.items():
            for value in re.findall(_VALUE, text):
                readers.setdefault(value, set()).add(result)
        changes: Counter[str] = Counter()
        pending = dict.fromkeys(self._made)
        while pending:
            result = next(iter(pending))
            del pending[result]
            numbers = self._result(self._made[result])
            old = self._found.get(result)
            if numbers is None or (new := join(old, numbers)) == old:
                continue
            changes[result] += 1
            self._found[result] = new if changes[result] < PATIENCE else ANY
            pending.update(dict.fromkeys(readers.get(result, ())))

    def of(self, operand: str) -> Numbers | None:
        """The numbers of a value or constant, behind its type or not; None as long as nothing is known to reach it."""
        operand = operand.strip()
        if inside := re.search(r"getelementptr (?:[a-z]+ )*\((.*)\)$", operand):
            return self._moved(inside[1])
        word = operand.rpartition(" ")[2]
        if word in self._given:
            return self._given[word]
        if self._given and (text := self._made.get(word, "")).partition(" ")[0] in _ARITHMETIC.keys() | _CASTS | {
            "getelementptr"
        }:
            return self._result(text)
        if re.fullmatch(r"-?\d+", word):
            return listed([int(word)])
        if word in self._found:
            return self._found[word]
        if word in self._made or word == "poison":
            return None
        if word.startswith("@"):
            return Numbers(word, frozenset([0]))
        return listed([0]) if word in ("false", "zeroinitializer", "null") else listed([1]) if word == "true" else ANY

    def under(self, condition: str) -> "Values":
        """The numbers of values where a condition holds: of what it compares with a constant, and of what follows from that."""
        narrowed = copy(self)
        narrowed._given = {}
        pending = [condition.split()[-1]]
        while pending:
            text = self._made.get(pending.pop(), "")
            if found := re.fullmatch(rf"icmp (?:samesign )?(eq|ult|slt) i\d+ ({_VALUE}), (\d+)", text):
                asked, value, constant = found[1], found[2], int(found[3])
                known = self.of(value)
                if asked == "eq":
                    narrowed._given[value] = listed([constant])
                elif constant > 0 and known is not None and not known.base and (asked == "ult" or known.first >= 0):
                    kept = known.few and listed(number for number in known.few if number < constant)
                    narrowed._given[value] = kept or up_to(constant - 1)
            elif found := re.fullmatch(rf"(?:and|select) i1 ({_VALUE}), (?:i1 )?({_VALUE})(?:, i1 false)?", text):
                pending += found.groups()
        return narrowed

    def _moved(self, text: str) -> Numbers | None:
        """Of a getelementptr's operands."""
        kind, base, *indices = split(text)
        if len(indices) > 1 and self.of(indices[0]) == listed([0]) and kind.startswith("["):
            kind, indices = kind[1:-1].partition(" x ")[2], indices[1:]
        values = [self.of(base), *map(self.of, indices)]
        if None in values:
            return None
        return add(values[0], times(values[1], listed([size_of(kind)]))) if len(values) == 2 else ANY

    def _result(self, text: str) -> Numbers | None:
        name, _, rest = text.partition(" ")
        if name == "getelementptr":
            return self._moved(re.sub(r"^(?:(?:inbounds|nuw|nusw) )+", "", rest))
        if name == "phi":
            found = None
            for value in re.findall(r"\[ (.*?), %", rest):
                numbers = self.of(value)
                found = join(found, numbers) if numbers is not None else found
            return found
        if name == "select":
            return self._selected(*split(rest))
        if name in _CASTS:
            return self._converted(name, rest)
        if name == "insertvalue":  # of a structure only its first element matters here
            whole, part, place = split(rest)
            return self.of(part if place == "0" else whole)
        if name == "call":
            return self._called(rest)
        operands = split(re.sub(r"^(?:(?:nuw|nsw|exact|disjoint) )+", "", rest))
        if name not in _ARITHMETIC or len(operands) != 2 or not re.match(r"i\d+ ", operands[0]):
            return ANY
        one, other = map(self.of, operands)
        return None if one is None or other is None else _ARITHMETIC[name](one, other)

    def _converted(self, name: str, rest: str) -> Numbers | None:
        source, _, kind = re.sub(r"^(?:(?:nneg|nuw|nsw) )+", "", rest).rpartition(" to ")
        numbers = self.of(source)
        if numbers is None:
            return None
        if name == "trunc" and not numbers.base and numbers.last >= 1 << 8 * size_of(kind) - 1:
            return ANY
        if name == "zext" and numbers.first < 0:
            return up_to((1 << 8 * size_of(source.rpartition(" ")[0])) - 1)
        if name == "zext" and numbers == ANY and (bits := re.match(r"i(\d+)", source)):  # and no vector
            return up_to((1 << int(bits[1])) - 1)
        return numbers

    def _selected(self, condition: str, yes: str, no: str) -> Numbers | None:
        """One of two values; the one that is compared with a number is not that number: ``last == STAGES ? 0 : last``."""
        asked = re.fullmatch(rf"icmp (?:samesign )?(eq|ne) \w+ ({_VALUE}), (-?\d+)", self._made.get(condition.split()[-1], ""))
        found = None
        for value, equal in ((yes, "ne"), (no, "eq")):
            numbers = self.of(value)
            if numbers is None:
                continue
            if asked and asked[1] == equal and asked[2] == value.split()[-1] and numbers.few is not None and not numbers.base:
                left = numbers.few - {int(asked[3])}
                if not left:
                    continue
                numbers = listed(left)
            found = join(found, numbers)
        return found

    def _called(self, rest: str) -> Numbers | None:
        found = re.search(r"@llvm\.([\w.]+)\((.*)\)", rest)
        if not found or " asm " in rest:
            return ANY
        name, operands = found[1], split(found[2])
        if name == "nvvm.read.ptx.sreg.tid.x":
            return up_to(self._threads - 1)
        if name.startswith("nvvm.shfl.sync."):  # another lane's
            return self.of(operands[1])
        if name.startswith("umin.i"):
            values = list(map(self.of, operands))
            if None not in values and all(not value.base and value.first >= 0 for value in values):
                return up_to(min(value.last for value in values))
        return ANY


def _subtracted(one: Numbers, other: Numbers) -> Numbers:
    return add(one, listed({-number for number in other.few})) if other.few is not None and not other.base else ANY


def _bitwise(function: Callable[[int, int], int], *, both: bool) -> Callable[[Numbers, Numbers], Numbers]:
    def result(one: Numbers, other: Numbers) -> Numbers:
        exact = _exact(function, one, other)
        bits = _possible(one) & _possible(other) if both else _possible(one) | _possible(other)
        return exact or (Numbers("", None, 0, bits) if bits < 2 * LARGEST else ANY)

    return result


def _shifted_left(one: Numbers, other: Numbers) -> Numbers:
    return ANY if other.only is None else times(one, listed([1 << other.only]))


def _shifted_right(one: Numbers, other: Numbers) -> Numbers:
    if other.only is None or one.first < 0 or one.last >= LARGEST:
        return ANY
    return _exact(int.__rshift__, one, other) or Numbers("", None, 0, _possible(one) >> other.only)


def _remainder(one: Numbers, other: Numbers) -> Numbers:
    return up_to(other.only - 1) if other.only and other.only > 0 and one.first >= 0 else ANY


_CASTS = {"zext", "sext", "trunc", "freeze", "bitcast", "ptrtoint", "inttoptr", "addrspacecast"}
_ARITHMETIC: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "add": add,
    "sub": _subtracted,
    "mul": times,
    "shl": _shifted_left,
    "lshr": _shifted_right,
    "ashr": _shifted_right,
    "and": _bitwise(int.__and__, both=True),
    "or": _bitwise(int.__or__, both=False),
    "xor": _bitwise(int.__xor__, both=False),
    "urem": _remainder,
}
