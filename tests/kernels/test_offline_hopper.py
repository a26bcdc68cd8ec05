"""The gluon_hopper kernel compiled for an H100 that is not here, by this lane's Triton: no spills, and wgmma in parallel."""

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from capgate import compat

KINDS = ("64,128,clean", "64,128,unclean", "64,128,compressed", "32,128,clean", "16,64,clean", "128,32,clean")


@lru_cache
def compile_all() -> tuple[list[dict[str, Any]], str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("compile_hopper.py")), *KINDS]
    try:
        child = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    except subprocess.TimeoutExpired as hung:
        return [json.loads(line) for line in (hung.stdout or b"").splitlines()], f"it hung: {hung}"
    return [json.loads(line) for line in child.stdout.splitlines()], child.stderr[-4000:]


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_spills_and_serialized_products(kind: str) -> None:
    caps = compat.capabilities("cuda:90")
    if not caps.gluon_hopper:
        pytest.skip(caps.why("gluon_hopper"))
    results, last_words = compile_all()
    assert len(results) > KINDS.index(kind), last_words
    result = results[KINDS.index(kind)]
    assert result["spills"] == 0
    assert not result["serialized"]
    assert result["wgmma"] == ["wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3"]
    assert 0 < result["shared"] <= 227 * 1024
