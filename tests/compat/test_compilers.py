"""compilers: what this build's ptxas and its lowering for AMD know is asked of them, silently and without an abort."""

import stat
from pathlib import Path

import pytest

from capgate import compat
from capgate.compat import _probes as probes
from capgate.compat import targets

triton = pytest.importorskip("triton")

# Architectures that a Triton's compiler does not know, of those that another one does.
UNKNOWN = {
    "3.5.1": {"sm103", "sm110", "sm121", "gfx906", "gfx1250", "gfx1251"},
    "3.6.0": {"sm110", "gfx906", "gfx1250", "gfx1251"},
    "3.7.1": {"sm101", "gfx906", "gfx1251"},
    "3.8.0": {"sm101"},
    "3.9.0": {"sm101", "gfx1030"},
}
ASKED = ["sm60", "sm75", "sm90", "sm100", "sm101", "sm103", "sm110", "sm120", "sm121"]
ASKED += ["gfx906", "gfx90a", "gfx942", "gfx950", "gfx1030", "gfx1100", "gfx1151", "gfx1201", "gfx1250", "gfx1251"]


@pytest.mark.parametrize("arch", ASKED)
def test_a_target_is_promised_where_its_compiler_knows_it(lane: str, arch: str, capfd) -> None:
    caps = compat.capabilities(arch)
    known = arch not in UNKNOWN[lane]
    assert (caps.known_target, caps.triton_gpu) == (known, known), caps.why("known_target")
    assert lane in caps.why("known_target")
    if not known:
        assert (
            caps.why("triton_gpu") == f"needs a compiler that knows the target: {caps.why('known_target').partition(': ')[2]}"
        )
    assert capfd.readouterr() == ("", ""), "compilers print why they fail"


def test_the_reason_has_the_compiler_s_own_words(lane: str) -> None:
    if lane != "3.5.1":
        pytest.skip("is about Triton 3.5.1")
    words = "ptxas 12.8 with Triton 3.5.1, which says: ptxas fatal : Value 'sm_103a' is not defined for option 'gpu-name'"
    assert compat.capabilities("sm103").why("known_target").endswith(words)
    assert compat.capabilities("gfx906").why("known_target").endswith("3.5.1, which says: unsupported target: 'gfx906'")


@pytest.mark.parametrize("variant", ["sm90a", "cuda:90a", "cuda:100f", "sm_103a", "sm120f"])
def test_a_variant_of_an_architecture_is_its_base(variant: str) -> None:
    base = "".join(character for character in variant if character.isdigit())
    assert targets.parse(variant) == targets.cuda(base)
    as_it_is = compat.Target("cuda", variant.removeprefix("cuda:").removeprefix("sm").removeprefix("_"), 32)
    caps, expected = compat.capabilities(as_it_is), compat.capabilities(f"cuda:{base}")
    assert {name for name in caps if caps[name]} == {name for name in caps if expected[name]}


def test_features_behind_an_amd_architecture_change_nothing() -> None:
    caps = compat.capabilities(compat.Target("hip", "gfx950:sramecc+:xnack-", 64))
    assert caps.gfx950
    assert caps.scaled_mfma
    assert caps.known_target


@pytest.mark.parametrize("target", [compat.Target("cuda"), compat.Target("hip"), compat.Target("cpu"), compat.Target("xpu")])
def test_a_target_without_an_architecture_is_known_to_no_compiler(target: compat.Target) -> None:
    assert not compat.capabilities(target).known_target


def _tool(folder: Path, says: str) -> str:
    """A ptxas of release 99.1 that says this of every architecture."""
    tool = folder / "ptxas"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release 99.1, V99.1.1" && exit\n{says}\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    return str(tool)


REFUSES = "echo \"ptxas fatal   : Value '${1#*=}' is not defined for option 'gpu-name'\" >&2; exit 255"


@pytest.mark.parametrize(
    ("says", "known"), [(REFUSES, False), ("echo 'ptxas fatal   : Missing .version directive' >&2; exit 255", True)]
)
@pytest.mark.parametrize(("arch", "variable"), [("sm80", "TRITON_PTXAS_PATH"), ("sm120", "TRITON_PTXAS_BLACKWELL_PATH")])
def test_the_ptxas_that_the_variable_points_at_is_asked_from_then_on(
    tmp_path, monkeypatch, lane: str, arch: str, variable: str, says: str, known: bool
) -> None:
    if lane == "3.5.1":
        variable = "TRITON_PTXAS_PATH"  # which has one for all
    assert "99.1" not in compat.capabilities(arch).why("known_target")
    monkeypatch.setenv(variable, _tool(tmp_path, says))
    assert "ptxas 99.1" in compat.capabilities(arch).why("known_target")
    assert compat.capabilities(arch).triton_gpu is known
    monkeypatch.delenv(variable)
    assert compat.capabilities(arch).triton_gpu


def test_a_killed_ptxas_has_said_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_PTXAS_PATH", _tool(tmp_path, "kill -9 $$"))
    caps = compat.capabilities("sm80")
    assert "SIGKILL" in caps.why("known_target")
    _tool(tmp_path, "exit 255")
    assert caps.known_target


def test_a_choice_follows_the_ptxas(tmp_path, monkeypatch) -> None:
    class Problem(str):
        device = "cuda:80"

    operation: compat.Operation[Problem] = compat.Operation("toy")
    operation.add(compat.Variant("kernel", print, requires=("triton_gpu",)))
    operation.add(compat.Variant("torch", print))
    assert operation.select(Problem()).name == "kernel"
    monkeypatch.setenv("TRITON_PTXAS_PATH", _tool(tmp_path, REFUSES))
    assert operation.select(Problem()).name == operation.explain(Problem()).variant == "torch"
    monkeypatch.delenv("TRITON_PTXAS_PATH")
    assert operation.select(Problem()).name == "kernel"


def test_a_build_without_a_back_end_knows_none_of_its_targets(monkeypatch) -> None:
    resolve = probes.resolve
    monkeypatch.setattr(probes, "resolve", lambda path: None if path.startswith("triton.backends") else resolve(path))
    for arch, vendor in (("sm90", "NVIDIA"), ("gfx950", "AMD")):
        assert compat.capabilities(arch).why("known_target").endswith(f", without a back end for {vendor}")


def test_standard_error_may_be_closed(python) -> None:
    code = "import os; os.close(2)\nfrom capgate import compat\nprint(compat.capabilities('gfx950')['known_target'].available)"
    assert python("-c", code).stdout == "True\n"
