"""The compiler's assembly text as a program: instructions, labels, kernel descriptor, arguments.

Syntax: LLVM's "Syntax of AMDGPU Instruction Operands" and "User Guide for AMDGPU Backend" (kernel descriptor directives and
code object metadata). Registers of the scalar file are numbered as the instruction set encodes them: s0 is 0, vcc 106,
m0 124, exec 126.
"""

import re
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from .errors import UnknownInstruction

VCC, M0, EXEC = 106, 124, 126
NAMED_SCALARS = {
    "flat_scratch": (102, 2), "flat_scratch_lo": (102, 1), "flat_scratch_hi": (103, 1),
    "xnack_mask": (104, 2), "xnack_mask_lo": (104, 1), "xnack_mask_hi": (105, 1),
    "vcc": (VCC, 2), "vcc_lo": (VCC, 1), "vcc_hi": (VCC + 1, 1),
    "m0": (M0, 1),
    "exec": (EXEC, 2), "exec_lo": (EXEC, 1), "exec_hi": (EXEC + 1, 1),
}  # fmt: skip
ENCODINGS = ("_e32", "_e64_dpp", "_e64", "_dpp", "_sdwa")
REGISTER = re.compile(r"([vsa])(?:(\d+)|\[(\d+)(?::(\d+))?\])")
KEY_VALUE = re.compile(r"([a-z]\w*):(.+)", re.ASCII)


class Operand(NamedTuple):
    """One operand as written.

    kind : v, a, s (registers), integer, real (constants), off, scc, or text (labels, hwreg, ...)
    """

    kind: str
    index: int = 0  # first register
    count: int = 1  # registers
    value: Any = None  # of a constant or a text
    negate: bool = False
    absolute: bool = False
    sign_extend: bool = False


@dataclass(frozen=True)
class Instruction:
    """One instruction: ``v_add_f32_dpp`` has the mnemonic v_add_f32 and the encoding dpp."""

    mnemonic: str
    encoding: str
    operands: tuple[Operand, ...]
    modifiers: dict[str, Any]
    text: str

    def unknown(self, what: str = "instruction") -> UnknownInstruction:
        return UnknownInstruction(f"unknown {what}: {self.text}")


class Argument(NamedTuple):
    """One entry of the kernarg segment's layout."""

    offset: int
    size: int
    kind: str  # global_buffer, by_value, hidden_block_count_x, ...


@dataclass
class Program:
    """A kernel's code and what a launch has to know about it."""

    name: str = ""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    descriptor: dict[str, int] = field(default_factory=dict)
    arguments: list[Argument] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    alignments: list[int] = field(default_factory=list)  # instructions that start at a multiple of 256 bytes
    inline: set[int] = field(default_factory=set)  # instructions of inline assembly, which the compiler did not look into
    arch: str = ""  # such as gfx950

    @property
    def waves(self) -> int:
        """Waves of a workgroup: Triton launches exactly the largest size that it declares."""
        return -(-int(self.metadata["max_flat_workgroup_size"]) // 64)


@lru_cache(maxsize=16)
def parse(assembly: str) -> Program:
    """The one kernel in a text; nobody may change it."""
    program = Program()
    in_text, in_metadata, in_inline = False, False, False
    for line in assembly.splitlines():
        if line.lstrip().startswith(";;#ASM"):
            in_inline = "START" in line
        statement = line.split(";")[0].strip() if not in_metadata else line
        if not statement.strip():
            continue
        if in_metadata:
            in_metadata = ".end_amdgpu_metadata" not in line
            _metadata_line(program, line)
        elif statement.startswith(".amdhsa_"):
            key, *value = statement.split()
            if key == ".amdhsa_kernel":
                program.name = value[0]
            else:
                number = value[0].split(",")[0]
                program.descriptor[key.removeprefix(".amdhsa_")] = int(number) if number.lstrip("-").isdigit() else 0
        elif statement == ".amdgpu_metadata":
            in_metadata = True
        elif statement.startswith(".amdgcn_target"):
            program.arch = statement.strip('"').rpartition("-")[2].partition(":")[0]
        elif statement.endswith(":"):
            program.labels[statement[:-1]] = len(program.instructions)
        elif statement == ".text" or statement.startswith(".section"):
            in_text = statement == ".text" or ".text" in statement
        elif statement.startswith("."):
            if in_text and statement.replace("\t", " ").startswith(".p2align 8") and program.instructions:
                program.alignments.append(len(program.instructions))
        elif in_text:
            if in_inline:
                program.inline.add(len(program.instructions))
            program.instructions.append(parse_instruction(statement))
    return program


def _metadata_line(program: Program, line: str) -> None:
    """The metadata is YAML of one fixed shape: a list of arguments, then keys of the kernel."""
    key, _, value = line.strip().removeprefix("- ").partition(":")
    value = value.strip()
    if key == ".offset":
        program.arguments.append(Argument(int(value), 0, ""))
    elif key in (".size", ".value_kind") and program.arguments:
        last = program.arguments[-1]
        program.arguments[-1] = last._replace(size=int(value)) if key == ".size" else last._replace(kind=value)
    elif key.startswith("."):
        program.metadata[key[1:]] = value


@lru_cache(maxsize=50_000)
def parse_instruction(statement: str) -> Instruction:
    """Kernels have many instructions in common; nobody may change one."""
    text = " ".join(statement.split())
    name, _, rest = text.partition(" ")
    encoding = next((suffix for suffix in ENCODINGS if name.endswith(suffix)), "")
    mnemonic, encoding = name.removesuffix(encoding), encoding[1:]
    if mnemonic == "s_waitcnt":
        counters = {key: int(value) for key, value in re.findall(r"(\w+cnt)\((\d+)\)", rest)}
        if re.sub(r"\w+cnt\(\d+\)", "", rest).strip():
            raise UnknownInstruction(f"unknown wait: {text}")
        return Instruction(mnemonic, encoding, (), counters, text)
    operands: list[Operand] = []
    modifiers: dict[str, Any] = {}
    for piece in _split(rest, ","):
        words = _split(piece, " ")
        for position, word in enumerate(words):
            key_value = KEY_VALUE.fullmatch(word)
            if key_value and not word.startswith("neg("):
                modifiers[key_value[1]] = _modifier_value(key_value[2])
            elif position == 0 and not _is_flag(word):
                operands.append(parse_operand(word))
            else:
                modifiers[word] = 1
    return Instruction(mnemonic, encoding, tuple(operands), modifiers, text)


FLAGS = {"row_mirror", "row_half_mirror", "offen", "idxen", "lds", "sc0", "sc1", "nt", "clamp", "gds"}


def _is_flag(word: str) -> bool:
    return word in FLAGS


def _split(text: str, separator: str) -> list[str]:
    """Split at the separators outside brackets."""
    pieces, depth, current = [], 0, ""
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == separator and depth == 0:
            pieces.append(current.strip())
            current = ""
        else:
            current += character
    pieces.append(current.strip())
    return [piece for piece in pieces if piece]


def _modifier_value(text: str) -> Any:
    if text.startswith("["):
        return tuple(int(item) for item in text[1:-1].split(","))
    try:
        return int(text, 0)
    except ValueError:
        return text


def parse_operand(word: str) -> Operand:
    negate = absolute = sign_extend = False
    if re.match(r"-[vsa|]", word) and not word.startswith("-src"):
        negate, word = True, word[1:]
    if word.startswith("neg("):
        negate, word = True, word[4:-1]
    if word.startswith("|"):
        absolute, word = True, word[1:-1]
    if word.startswith("abs("):
        absolute, word = True, word[4:-1]
    if word.startswith("sext("):
        sign_extend, word = True, word[5:-1]
    register = REGISTER.fullmatch(word)
    if register:
        first = int(register[2] or register[3])
        return Operand(register[1], first, int(register[4] or first) - first + 1, None, negate, absolute, sign_extend)
    if word in NAMED_SCALARS:
        return Operand("s", *NAMED_SCALARS[word], None, negate, absolute, sign_extend)
    if word in ("off", "scc", "src_scc", "null"):
        return Operand(word.removeprefix("src_"))
    try:
        return Operand("integer", value=int(word, 0), negate=negate, absolute=absolute)
    except ValueError:
        pass
    try:
        return Operand("real", value=float(word), negate=negate, absolute=absolute)
    except ValueError:
        return Operand("text", value=word)


def constant_bits(operand: Operand, bits: int, real: str, high_half: bool = False) -> int:
    """A constant as the bits that an operand of that width reads; ``real`` is struct's code for real constants of the width.

    An inline integer is sign extended. A literal for a 64-bit real is its high half; one for a 64-bit integer is extended.

    high_half : whether the operand is a 64-bit real
    """
    if operand.kind == "real":
        return int.from_bytes(struct.pack("<" + real, operand.value), "little")
    value = operand.value
    if high_half and not -16 <= value <= 64:
        value <<= 32
    return value & ((1 << bits) - 1)
