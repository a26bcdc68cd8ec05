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


@needs_gluon
def test_what_a_build_lacks_is_chosen_by_capability() -> None:
    """A vendor's build that has a feature early gets it: the surface asks for capabilities, not for versions."""
    code = "import capgate.compat.gluon as s; print(s.VGPRS_ONLY, s._PUBLIC_REINTERPRET.value, s.barrier.__name__)"
    caps = compat.capabilities()
    found = in_new_process(code).split()
    assert ("llvm_fn_attrs" in found[0]) == caps.llvm_fn_attrs
    assert str(caps.gluon_reinterpret) in found
    assert found[-1] == ("barrier" if caps.gluon_barrier else "thread_barrier")
    older = in_new_process(code, CAPGATE_DISABLE="llvm_fn_attrs,gluon_reinterpret").split()
    assert older[:2] == ["{}", "False"]
