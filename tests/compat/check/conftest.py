"""Somebody's script, with kernels of every kind, and what it launched."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from capgate.kernels.cli import main

SCRIPT = """
import os
import sys
import torch
import triton
import triton.language as tl
from neighbour import TWO, twice

if os.path.exists("ran"):
    raise RuntimeError("the script is run again")
open("ran", "w").close()

CONFIGS = [triton.Config({"BLOCK": size}, num_warps=warps) for size, warps in ((256, 2), (512, 4))]


@triton.autotune(configs=CONFIGS, key=["count"])
@triton.heuristics({"EVEN": lambda given: given["count"] % given["BLOCK"] == 0})
@triton.jit
def scaled(x, out, count, factor, BLOCK: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at) if EVEN else tl.load(x + at, mask=at < count)
    tl.store(out + at, (twice(value) * factor).to(DTYPE), mask=at < count)


@triton.jit
def broken(x, kernel, SIZE: tl.constexpr):
    tl.store(x + tl.arange(0, SIZE), tl.no_such_function(kernel))


at = open("begun", "x")  # a name that kernels have for their own; a second time this fails


def run(gpu):
    x, out = torch.ones(1024, device=gpu), torch.zeros(1024, device=gpu)
    grid = lambda given: (triton.cdiv(1024, given["BLOCK"]),)
    for count in (1000, 1008, 1023):
        scaled[grid](x, out, count, TWO, DTYPE=tl.float32)
    scaled[grid](x.narrow(0, 1, 1023), out, 1023, 3.0, DTYPE=tl.float32)
    return out


if sys.argv[1:] == ["fake"]:
    from gluons import tiled
    from triton.experimental.gluon import language as gl

    run("cuda")
    broken[(1,)](torch.zeros(8, device="cuda"), kernel=5, SIZE=8)
    tiled[(2, 3)](torch.zeros(256, device="cuda"), (1, 2.0), gl.BlockedLayout([1], [32], [4], [0]), num_warps=4)

    @triton.jit
    def inner(x):
        tl.store(x, 1.0)

    def closure():
        @triton.jit
        def hidden(x):
            tl.store(x, 1.0)
        return hidden

    closure()[(1,)](torch.zeros(1, device="cuda"))
else:
    print("sum", float(run("cpu").sum()))
"""
NEIGHBOUR = """
import triton
import triton.language as tl

TWO = 2.0


@triton.jit
def twice(value):
    return value + value
"""
GLUONS = """
import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

MAJOR = torch.cuda.get_device_capability()[0]  # as libraries ask when they are imported


@gluon.jit
def tiled(x, pair, LAYOUT: gl.constexpr):
    at = gl.arange(0, 256, layout=LAYOUT)
    gl.store(x + at, gl.load(x + at) * pair[1] + pair[0])
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with somebody's script, in which commands are given."""
    for name, text in (("script.py", SCRIPT), ("neighbour.py", NEIGHBOUR), ("gluons.py", GLUONS)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CAPGATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))  # finding a kernel adds folders to it, and modules
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "").is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.fixture
def record(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``record("--fake", "script.py", "fake")``: capgate record, with options before the script."""
    monkeypatch.setenv("PYTHONPATH", ":".join(entry for entry in sys.path if entry))

    def run(*words: str) -> int:
        options = [word for word in words if word.startswith("-")]
        command = [sys.executable, *(word for word in words if not word.startswith("-"))]
        return main(["record", *options, "--", *command])

    return run
