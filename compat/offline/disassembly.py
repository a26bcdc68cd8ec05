"""Reading machine code: LLVM's amdgcn text or SASS as nvdisasm prints it, what its instructions are, and its hot loop.

Counts are static: each instruction of a loop once, whether or not a branch inside the loop may skip it.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .control_flow import Flow, natural_loops


class Instruction(NamedTuple):
    """One instruction.

    mnemonic : ``v_add_f32`` (without LLVM's encoding suffix), ``QGMMA.64x128x32.F32.E4M3.E4M3``
    operands : as written
    predicate : the guard of a SASS instruction, "" where there is none
    """

    mnemonic: str
    operands: str = ""
    predicate: str = ""


class Listing(NamedTuple):
    """A kernel's instructions in the order of their addresses; a label is the index of the instruction after it.

    sass : whether it is NVIDIA's machine code; amdgcn otherwise
    unread : lines that should be instructions and are none that is known here, so that counts would be too low
    """

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    sass: bool
    unread: tuple[str, ...]


class HotLoop(NamedTuple):
    """The instructions of a wave's (or warp's) pass through a loop.

    total : all; what no class below counts are scalar and constant loads, branches, waits, barriers and no-ops
    valu : vector arithmetic, with DPP and moves between VGPRs and AGPRs
    salu : arithmetic of the scalar unit (AMD) or of the uniform datapath (NVIDIA)
    mfma : matrix instructions
    lds : LDS or shared memory, with exchanges of lanes that go through it (ds_bpermute, SHFL), and tensor memory
    vmem : global and scratch memory, with copies from there straight to LDS
    products : multiply-adds of the matrix instructions, one wave's share; None where the code does not show a shape
    """

    total: int
    valu: int
    salu: int
    mfma: int
    lds: int
    vmem: int
    products: int | None


_AMDGCN = re.compile(r"\s+([a-z]+_\w+)\s*(.*)")
_ENCODING = re.compile(r"_(e32|e64|dpp8?|sdwa|e64_dpp8?)$")
_SASS = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+\{?\s*(@!?U?P\w+)?\s*([A-Z]\w*(?:\.\w+)*)\s*(.*?)\s*;")
_ADDRESS = re.compile(r"\s*/\*[0-9a-f]{4,}\*/")
_SYMBOL = re.compile(r"[.$\w]+")
_LABEL = re.compile(rf"({_SYMBOL.pattern}):")


def read_amdgcn(text: str) -> Listing:
    """The code in an assembly text; directives, comments and metadata are left out."""

    def instruction(line: str) -> Instruction | None:
        found = _AMDGCN.fullmatch(line)
        return Instruction(_ENCODING.sub("", found[1]), found[2]) if found else None

    def counts(line: str) -> bool:
        return bool(_LABEL.match(line) or (line and not line.lstrip().startswith(".")))

    lines = (line.partition(";")[0].rstrip() for line in text.partition(".amdgpu_metadata")[0].splitlines())
    return _read(filter(counts, lines), instruction, sass=False)


def read_sass(text: str) -> Listing:
    """The code that ``nvdisasm -c`` prints."""

    def instruction(line: str) -> Instruction | None:
        found = _SASS.match(line)
        return Instruction(found[2], found[3], found[1] or "") if found else None

    return _read((line for line in text.splitlines() if _ADDRESS.match(line) or _LABEL.match(line)), instruction, sass=True)


def _read(lines: Iterable[str], instruction: Callable[[str], Instruction | None], *, sass: bool) -> Listing:
    """A listing of lines that are labels or instructions."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    unread: list[str] = []
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := instruction(line):
            instructions.append(found)
        else:
            unread.append(line.strip())
    return Listing(tuple(instructions), labels, sass, tuple(unread))


def normal_form(listing: Listing) -> list[str]:
    """A line for each instruction, in which labels, the kernel's own name among them, are places: what two programs share that
    differ in names alone."""

    def place(name: re.Match[str]) -> str:
        return f"<{listing.labels[name[0]]}>" if name[0] in listing.labels else name[0]

    return [
        " ".join(part for part in (step.predicate, step.mnemonic, _SYMBOL.sub(place, step.operands)) if part)
        for step in listing.instructions
    ]


def matrix_instructions(listing: Listing) -> dict[str, int]:
    """How often each matrix instruction stands in the kernel."""
    return dict(Counter(step.mnemonic for step in listing.instructions if _kind(listing, step) == "mfma"))


def hot_loop(listing: Listing, waves: int | None) -> HotLoop | None:
    """The innermost loop with the most matrix instructions (of equal ones the shortest); None where no loop has any.

    waves : of a workgroup, which share what one instruction computes for all of them; None if unknown
    """
    body = hot_loop_body(listing)
    if not body:
        return None
    kinds = [_kind(listing, step) for step in listing.instructions]
    count = Counter(kinds[index] for index in body)
    shares = [_products(listing, index, waves) for index in body if kinds[index] == "mfma"]
    known = [share for share in shares if share is not None]
    return HotLoop(
        total=len(body),
        products=sum(known) if len(known) == len(shares) else None,
        **{kind: count[kind] for kind in ("valu", "salu", "mfma", "lds", "vmem")},
    )


def hot_loop_body(listing: Listing) -> list[int]:
    """The instructions of the loop that :func:`hot_loop` counts, in the order of the code; none where it finds none."""
    matrix = {index for index, step in enumerate(listing.instructions) if _kind(listing, step) == "mfma"}
    loops = [loop for loop in natural_loops(flow_of(listing)) if matrix & loop]
    innermost = [loop for loop in loops if not any(other < loop for other in loops)]
    return sorted(max(innermost, key=lambda loop: (len(matrix & loop), -len(loop)), default=()))


# --- where control goes ---------------------------------------------------------------------------------------------------

_SASS_JUMPS = ("BRA", "JMP", "BRX", "BRXU", "JMX", "JMXU")
_SASS_ENDS = ("EXIT", "RET", "KILL")


def flow_of(listing: Listing) -> list[Flow]:
    following = _after_sass if listing.sass else _after_amdgcn
    return [following(step, listing.labels) for step in listing.instructions]


def _after_amdgcn(step: Instruction, labels: dict[str, int]) -> Flow:
    if step.mnemonic == "s_branch" or step.mnemonic.startswith("s_cbranch"):
        return Flow(_targets(step, labels), falls_through=step.mnemonic != "s_branch")
    return Flow((), falls_through=not step.mnemonic.startswith(("s_endpgm", "s_setpc")))


def _after_sass(step: Instruction, labels: dict[str, int]) -> Flow:
    name = step.mnemonic.partition(".")[0]
    if name in _SASS_JUMPS:
        # A condition is a guard or an operand before the label; a jump through a register lists its targets in a comment.
        conditional = bool(step.predicate) or (name in ("BRA", "JMP") and not step.operands.startswith("`("))
        return Flow(_targets(step, labels), falls_through=conditional)
    return Flow((), falls_through=name not in _SASS_ENDS or bool(step.predicate))


def _targets(step: Instruction, labels: dict[str, int]) -> Sequence[int]:
    return [labels[name] for name in _SYMBOL.findall(step.operands) if name in labels]


# --- what an instruction is -----------------------------------------------------------------------------------------------

_AMDGCN_KINDS = (
    ("mfma", re.compile(r"v_(s?mfma|smfmac|s?wmma)")),
    ("valu", re.compile("v_")),
    ("lds", re.compile("ds_")),
    ("vmem", re.compile("(buffer|global|flat|scratch|image|tensor)_")),
    (
        "other",
        re.compile(
            "s_(buffer_load|buffer_store|load|store|scratch|dcache|mem|atomic|prefetch|branch|cbranch|endpgm|setpc|swappc|call"
            "|wait|barrier|nop|sleep|setprio|sethalt|sendmsg|icache|inst_prefetch|set_inst_prefetch|clause|delay_alu|trap"
            "|ttrace|code_end|wakeup|monitor|incperf|decperf)"
        ),
    ),
    ("salu", re.compile("s_")),
)
_SASS_KINDS = (
    ("mfma", re.compile(r"\w*MMA\b")),
    ("lds", re.compile(r"(LDS|LDSM|STS|STSM|ATOMS|SHFL|LDTM|STTM)\b")),
    (
        "vmem",
        re.compile(r"(LD|LDG|LDGSTS|LDL|ST|STG|STL|ATOM|ATOMG|RED|REDG|UTMALDG|UTMASTG|UTMAREDG|UTMAPF|UBLKCP|UBLKRED)\b"),
    ),
    (
        "other",
        re.compile(
            r"(U?LDCU?|S2U?R|CS2R|BRA|BRX|BRXU|JMP|JMX|JMXU|EXIT|RET|KILL|CALL|BSSY|BSYNC|BREAK|BMOV|WARPSYNC|WARPGROUP|BAR|UCGABAR"
            r"|DEPBAR|LDGDEPBAR|LDGMC|MEMBAR|FENCE|ERRBAR|CCTL|UTMACCTL|UTMACMDFLUSH|UTCBAR|SYNCS|ARRIVES|NOP|YIELD|NANOSLEEP"
            r"|USETMAXREG|UTCATOMSWS|UVIRTCOUNT|PREEXIT|ACQBULK|PMTRIG|BPT)\b"
        ),
    ),
    ("salu", re.compile("U")),
)


def _kind(listing: Listing, step: Instruction) -> str:
    """The field of HotLoop that counts an instruction, or "other"."""
    kinds, otherwise = (_SASS_KINDS, "valu") if listing.sass else (_AMDGCN_KINDS, "other")
    return next((kind for kind, pattern in kinds if pattern.match(step.mnemonic)), otherwise)


def _products(listing: Listing, index: int, waves: int | None) -> int | None:
    """Multiply-adds of one matrix instruction that fall to one wave; None where its shape is not in the code."""
    name = listing.instructions[index].mnemonic
    if not listing.sass:
        if found := re.search(r"_(\d+)x(\d+)x(\d+)(?:_(\d+)b)?", name):
            m, n, k, blocks = (int(size or 1) for size in found.groups())
            return m * n * k * blocks
        return None
    if found := re.match(r"\w*GMMA\.(\d+)x(\d+)x(\d+)", name):
        m, n, k = map(int, found.groups())
        return m * n * k // 4  # four warps issue it together
    if found := re.match(r"\w*MMA\.(?:\w+\.)*?(16)(8)(\d+)\b", name):
        m, n, k = map(int, found.groups())
        return m * n * k
    return _tensor_memory_products(listing, index, waves)


def _tensor_memory_products(listing: Listing, index: int, waves: int | None) -> int | None:
    """As ``_products`` for tcgen05.mma on 8-bit operands, whose shape is in a descriptor: the constant last moved there."""
    step = listing.instructions[index]
    descriptor = re.search(r"idesc\[(UR\d+)\]", step.operands)
    if not step.mnemonic.startswith("UTCQMMA") or descriptor is None or waves is None:
        return None
    for before in reversed(listing.instructions[:index]):
        written, _, value = before.operands.partition(", ")
        if written == descriptor[1]:
            if before.mnemonic != "UMOV" or not value.startswith("0x"):
                return None
            bits = int(value, 16)
            m, n = (bits >> 24 & 31) << 4, (bits >> 17 & 63) << 3  # PTX ISA, tcgen05 instruction descriptor
            return m * n * 32 // waves
    return None
