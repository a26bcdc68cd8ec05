"""The classic kernel compiled for GPUs that are not here, by this lane's Triton: it fits, and it uses the matrix units.

Each target has a child process with a time limit, because Triton can abort or hang, and without TRITON_INTERPRET.
"""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

SHARED_MEMORY = {"cuda:90": 227 * 1024, "hip:gfx950": 160 * 1024, "hip:gfx942": 64 * 1024}
MATRIX_INSTRUCTION = {"cuda:90": "wgmma.mma_async", "hip:gfx950": "f8f6f4", "hip:gfx942": "fp8_fp8"}
TARGETS = {
    "sm90": ("cuda:90", "float8_e4m3fn"),
    "gfx950": ("hip:gfx950", "float8_e4m3fn"),
    "gfx942": ("hip:gfx942", "float8_e4m3fnuz"),
    "gfx942-converting": ("hip:gfx942", "float8_e4m3fn"),
}
KINDS = ("64,128,clean", "32,128,clean", "64,128,unclean", "64,128,compressed", "100,64,clean")  # heads, dim, mode

targets = pytest.mark.parametrize(("target", "fp8"), TARGETS.values(), ids=TARGETS)
kinds = pytest.mark.parametrize("kind", KINDS)


@lru_cache
def compile_all(target: str, fp8: str) -> tuple[list[dict[str, Any]], str]:
    """What compile_classic.py says of each kind, as far as it came, and its last words."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_classic.py")), target, fp8, *KINDS]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    except subprocess.TimeoutExpired as hung:
        return [json.loads(line) for line in (hung.stdout or b"").splitlines()], f"it hung: {hung}"
    return [json.loads(line) for line in child.stdout.splitlines()], child.stderr[-4000:]


def compiled(target: str, fp8: str, kind: str) -> dict[str, Any]:
    results, last_words = compile_all(target, fp8)
    assert len(results) > KINDS.index(kind), last_words
    return results[KINDS.index(kind)]


@targets
@kinds
def test_bug_3_shared_memory_fits_the_part(target: str, fp8: str, kind: str) -> None:
    """3: Shared-memory overflow at H = 64, D = 128 on parts with 64 KiB (gfx942)."""
    assert 0 < compiled(target, fp8, kind)["shared"] <= SHARED_MEMORY[target]


@targets
@kinds
def test_bug_12_every_architecture_gets_its_own_fp8_matrix_instruction(target: str, fp8: str, kind: str) -> None:
    """12: The matrix-instruction version was hard-coded for one architecture."""
    instructions = compiled(target, fp8, kind)["matrix"]
    assert instructions
    assert all(MATRIX_INSTRUCTION[target] in name for name in instructions), instructions


@targets
@kinds
def test_registers_suffice_without_spills(target: str, fp8: str, kind: str) -> None:
    assert compiled(target, fp8, kind)["spills"] == 0
