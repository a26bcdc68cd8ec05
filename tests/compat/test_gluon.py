"""The Gluon surface: one set of names where Gluon serves, a reason where it does not, and nobody loads it unasked."""

import subprocess
import sys

import pytest

from capgate import compat

CAN = compat.capabilities().gluon
needs_gluon = pytest.mark.skipif(not CAN, reason=compat.capabilities().why("gluon"))
needs_none = pytest.mark.skipif(CAN, reason="is about a Triton whose Gluon lacks the interface of 3.6")


def in_new_process(code: str, **environment: str) -> str:
    import os

    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment}).stdout


IMPORT = """
from capgate import compat
try:
    import capgate.compat.gluon as surface
except compat.CapabilityError as error:
    print("CapabilityError:", error)
else:
    print(*(name for name in surface.__all__ if getattr(surface, name) is None), sep=",")
"""


@needs_gluon
def test_every_name_is_there() -> None:
    assert in_new_process(IMPORT).strip() == ""


def test_a_switch_takes_the_surface_away() -> None:
    assert "CapabilityError: gluon: disabled by CAPGATE_DISABLE" in in_new_process(IMPORT, CAPGATE_DISABLE="gluon")


@needs_none
def test_the_reason_is_raised_where_gluon_is_too_old() -> None:
    words = in_new_process(IMPORT)
    assert words.startswith("CapabilityError: gluon: needs the Gluon API of Triton 3.6: found ")


def test_bug_1_kernels_import_no_gluon() -> None:
    """1: An unconditional import of a Gluon submodule killed the classic fallback on the old stacks that needed it."""
    loaded = in_new_process(
        "import sys, capgate.kernels, capgate.kernels.mqa_logits.operation as o; o.operation.explain(device='hip:gfx950');"
        "print(*(name for name in sys.modules if 'gluon' in name and name.startswith('capgate')))"
    )
    assert loaded.split() == []


NAMES = """
import capgate.compat.gluon as surface
for name in ("barrier", "aggregate", "GluonASTSource", "tma_load", "tma_store"):
    print(name, getattr(surface, name).__module__, getattr(surface, name).__name__)
print("reinterpret", surface._PUBLIC_REINTERPRET.value)
"""
OF_NAMES = ("gluon_barrier", "gluon_aggregate", "gluon_ast_source", "gluon_tma_load", "gluon_tma_copy", "gluon_reinterpret")


@needs_gluon
def test_names_are_the_newest_that_the_build_has_whatever_is_switched_off() -> None:
    """Another name would not be there: 3.9 has stubs in the place of the old ones."""
    names = dict(line.split(maxsplit=1) for line in in_new_process(NAMES).splitlines())
    caps = compat.capabilities()
    assert names["barrier"].split()[-1] == ("barrier" if caps.gluon_barrier else "thread_barrier")
    assert names["tma_load"].split()[-1] == ("async_load" if caps.gluon_tma_load else "async_copy_global_to_shared")
    assert names["reinterpret"] == str(caps.gluon_reinterpret)
    switched = in_new_process(NAMES, CAPGATE_DISABLE=",".join(OF_NAMES))
    assert dict(line.split(maxsplit=1) for line in switched.splitlines()) == names


CHOICE = """
from capgate import compat
from capgate.kernels.mqa_logits.operation import operation

kernel = operation.load(operation.variants["gluon_cdna4"])
problem = operation.examples.problem(compat.capabilities("hip:gfx950").target, 64, 128, "unclean", None)
call = operation.examples.call(problem)

def options():
    return kernel.prepare(problem, *call.operands, **call.options)[call.number].keywords.get("llvm_fn_attrs")

print(options())
with compat.override(disable=["llvm_fn_attrs"]):
    print(options())
print(options())
"""


@needs_gluon
def test_an_override_reaches_the_next_launch() -> None:
    pytest.importorskip("torch")
    here = "amdgpu-agpr-alloc=0" if compat.capabilities().llvm_fn_attrs else "None"
    assert in_new_process(CHOICE).split() == [here, "None", here]
    assert in_new_process(CHOICE, CAPGATE_DISABLE="llvm_fn_attrs").split() == ["None"] * 3
