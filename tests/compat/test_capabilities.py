"""capabilities: the table is well-formed, holds where it should, and every verdict has a true reason."""

import copy
import pickle
import sys

import pytest

from capgate import compat
from capgate.compat import targets
from capgate.compat._capabilities import Capabilities, CapabilityError, Verdict
from capgate.compat.spelling import nearest
from capgate.compat.table import TABLE
from capgate.compat.targets import CPU

KINDS = {kind: [name for name, row in TABLE.items() if row.kind == kind] for kind in ("build", "target", "both")}
LANES = ("3.5.1", "3.6.0", "3.7.1", "3.8.0", "3.9.0")


def _since(lane: str) -> frozenset[str]:
    return frozenset(LANES[LANES.index(lane) :])


def _until(lane: str) -> frozenset[str]:
    return frozenset(LANES[: LANES.index(lane) + 1])


# The lanes in which a capability of the build holds. Not here: what depends on the environment and not on the lane.
HOLDS = {
    "triton": _since("3.5.1"),
    "triton_ge_36": _since("3.6.0"),
    "carried_loop_bounds": _since("3.8.0"),
    "interpreter_fp8_fnuz": _since("3.8.0"),
    "interpreter_dot_scaled": _since("3.8.0"),
    "interpreter_numpy_24": _since("3.7.1"),
    "block_pointers": _until("3.8.0"),
    "positional_load_modifiers": _until("3.8.0"),
    "dot_infers_out_dtype": _since("3.8.0"),
    "aggregate_replace": _since("3.8.0"),
    "constexpr_tuple_permute": _since("3.8.0"),
    "maximum_ignores_nan": _since("3.8.0"),
    "fp_fusion_default": _until("3.9.0"),
    "default_backend_variable": _since("3.7.1"),
    "llvm_fn_attrs": _since("3.8.0"),
    "cluster_dims": _until("3.5.1"),
    "launch_pdl": _since("3.5.1"),
    "schedule_hint": _until("3.7.1"),
    "waves_per_eu_exact": _since("3.6.0"),
    "amd_buffer_ops_default": _since("3.6.0"),
    "amd_async_copy_default": _since("3.8.0"),
    "agpr_split": _since("3.8.0"),
    "knows_gfx1250": _since("3.7.1"),
    "gluon": _since("3.6.0"),
    "gluon_shared_linear_layout": _since("3.6.0"),
    "gluon_bank_conflicts": _since("3.6.0"),
    "gluon_padded_layout": _since("3.6.0"),
    "gluon_barrier": _since("3.7.1"),
    "gluon_warp_specialize_list": _since("3.6.0"),
    "wgmma_after_zero_trip_loop": _since("3.8.0"),
    "wgmma_after_async_copy": _since("3.7.1"),
    "gluon_warp_specialize_free_registers": _since("3.7.1"),
    "gluon_cache_policy": _since("3.9.0"),
    "gluon_reinterpret": _since("3.9.0"),
    "gluon_aggregate": _since("3.8.0"),
    "gluon_ast_source": _since("3.9.0"),
    "gluon_async_groups": _since("3.6.0"),
    "gluon_linear_async_copy": _since("3.8.0"),
    "gluon_efficient_padding": _since("3.8.0"),
    "gluon_cdna3_mfma": _since("3.6.0"),
    "gluon_mfma_scaled": _since("3.5.1"),
    "gluon_mfma_regclass": _since("3.9.0"),
    "gluon_warp_pipeline": _since("3.7.1"),
    "gluon_gfx1250_wmma": _since("3.7.1"),
    "gluon_cdna5": _since("3.8.0"),
    "gluon_wgmma": _since("3.5.1"),
    "gluon_tma_load": _since("3.8.0"),
    "gluon_tma_copy": _until("3.8.0"),
    "gluon_tma_multicast": _since("3.7.1"),
    "gluon_device_descriptor": _since("3.6.0"),
    "gluon_allocate_mbarrier": _since("3.7.1"),
}
OF_THE_ENVIRONMENT = {"torch", "triton_kernels", "interpreter"}

# Everything of kind "target" that holds for a target, and nothing else does.
HAS = {
    "cpu": set(),
    "hip:gfx90a": {"gpu", "mfma"},
    "hip:gfx942": {"gpu", "gfx942", "mfma", "fp8_e4m3fnuz", "xcds_in_turn"},
    "hip:gfx950": {"gpu", "gfx950", "mfma", "fp8_e4m3fn", "scaled_mfma", "direct_to_lds_128", "xcds_in_turn"},
    "hip:gfx1100": {"gpu"},
    "hip:gfx1201": {"gpu", "fp8_e4m3fn"},
    "hip:gfx1250": {"gpu", "gfx1250", "fp8_e4m3fn"},
    "cuda:80": {"gpu"},
    "cuda:89": {"gpu", "sm89", "fp8_e4m3fn"},
    "cuda:90": {"gpu", "sm90", "fp8_e4m3fn", "griddepcontrol", "tma", "wgmma"},
    "cuda:100": {"gpu", "sm100", "fp8_e4m3fn", "griddepcontrol", "tma", "tcgen05"},
    "cuda:103": {"gpu", "sm100", "fp8_e4m3fn", "griddepcontrol", "tma", "tcgen05"},
    "cuda:110": {"gpu", "fp8_e4m3fn", "griddepcontrol", "tma", "tcgen05"},
    "cuda:120": {"gpu", "sm120", "fp8_e4m3fn", "griddepcontrol", "tma"},
    "cuda:121": {"gpu", "sm120", "fp8_e4m3fn", "griddepcontrol", "tma"},
}

BLOCK_SCALED_DOT = {
    "hip:gfx950": _since("3.5.1"),
    "hip:gfx1250": _since("3.7.1"),
    **dict.fromkeys(("cuda:100", "cuda:103"), _since("3.9.0")),
    **dict.fromkeys(("cuda:120", "cuda:121"), _since("3.6.0")),
}
UNKNOWN_TO = {"3.5.1": {"cuda:103", "cuda:110", "cuda:121", "hip:gfx1250"}, "3.6.0": {"cuda:110", "hip:gfx1250"}}


def _caps(target: str, **disabled: str) -> Capabilities:
    return Capabilities(targets.parse(target), disabled)


# The table


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_well_formed(name: str) -> None:
    row = TABLE[name]
    answers = {
        "build": (row.probe is not None) != bool(row.package),
        "target": bool(row.archs),
        "both": (len(row.all_of) > 1) != (row.asks is not None),
    }
    assert row.name == name
    assert name.isidentifier()
    assert not name.startswith("_")
    assert row.meaning
    assert row.needs
    assert [kind for kind, answered in answers.items() if answered] == [row.kind]
    assert set(row.all_of) <= TABLE.keys()
    assert name not in dir(Capabilities), "a method of this name would hide the flag"


@pytest.mark.parametrize("name", KINDS["both"])
def test_a_capability_of_both_joins_the_build_and_the_target(name: str) -> None:
    row = TABLE[name]
    assert row.asks or {TABLE[need].kind for need in row.all_of} == {"build", "target", "both"}
    assert all(TABLE[need].asks for need in row.all_of if TABLE[need].kind == "both")


@pytest.mark.parametrize("name", KINDS["target"])
def test_named_architectures_exist(name: str) -> None:
    for arch in set(TABLE[name].archs) - {"*"}:
        assert targets.parse(arch).label == arch


def test_the_names_that_others_go_by_are_there() -> None:
    named = "triton triton_ge_36 gluon gluon_linear_async_copy gluon_padded_layout constexpr_tuple_permute gfx950 gfx942 sm90 "
    named += "fp8_e4m3fn fp8_e4m3fnuz scaled_mfma tma wgmma gluon_cdna4 gluon_hopper"
    assert set(named.split()) <= TABLE.keys()


# Where they hold


def test_every_capability_of_the_build_has_an_expectation() -> None:
    assert HOLDS.keys() | OF_THE_ENVIRONMENT == set(KINDS["build"])


@pytest.mark.parametrize("name", HOLDS)
def test_of_the_build(lane: str, name: str) -> None:
    verdict = _caps("cpu")[name]
    assert verdict.available is (lane in HOLDS[name]), verdict.reason
    assert lane in verdict.reason


@pytest.mark.parametrize("target", HAS)
def test_of_the_target(target: str) -> None:
    caps = _caps(target)
    assert {name for name in KINDS["target"] if caps[name]} == HAS[target]


@pytest.mark.parametrize("target", HAS)
def test_of_both(lane: str, target: str) -> None:
    caps = _caps(target)
    known = target not in UNKNOWN_TO.get(lane, ()) and target != "cpu"
    expected = {
        "known_target": known,
        "block_scaled_dot": lane in BLOCK_SCALED_DOT.get(target, ()),
        "dependent_launch": known and "griddepcontrol" in HAS[target],
        "gfx950_wide_tiles": target == "hip:gfx950" and lane == "3.6.0",
        "triton_gpu": known,
        "gluon_cdna3": target == "hip:gfx942" and lane != "3.5.1",
        "gluon_cdna4": target == "hip:gfx950" and lane != "3.5.1",
        "gluon_gfx1250": target == "hip:gfx1250" and lane not in ("3.5.1", "3.6.0"),
        "gluon_hopper": target == "cuda:90" and lane != "3.5.1",
    }
    assert {name: bool(caps[name]) for name in KINDS["both"]} == expected


@pytest.mark.parametrize(("setting", "expected"), [("1", True), ("0", False), (None, False)])
def test_the_interpreter_is_of_the_environment(python, setting: str | None, expected: bool) -> None:
    """TRITON_INTERPRET is read by Triton when it is imported, so this takes a process of its own."""
    pytest.importorskip("triton")
    code = "from capgate import compat; print(*compat.capabilities('cpu')['interpreter'], sep='|')"
    done = python("-c", code, **({} if setting is None else {"TRITON_INTERPRET": setting}))
    found = "TRITON_INTERPRET unset" if setting is None else f"TRITON_INTERPRET={setting}"
    reason = f"found {found}" if expected else f"needs TRITON_INTERPRET=1: found {found}"
    assert done.stdout.strip() == f"{expected}|{reason}", done.stderr


@pytest.mark.parametrize("version", ["3.5.1", "1.0.0+nonsense.gitX+more"])
def test_an_installed_package(site, version: str) -> None:
    site.package("triton_kernels")
    site.distribution("triton-kernels", version)
    assert _caps("cpu")["triton_kernels"] == (True, f"found triton_kernels {version}")
    assert "triton_kernels" not in sys.modules


@pytest.mark.parametrize("metadata", [True, False], ids=["metadata", "no metadata"])
@pytest.mark.parametrize("package", ["triton_kernels", "torch"])
def test_a_package_that_does_not_import_is_not_there(site, package: str, metadata: bool) -> None:
    """Installed for another Triton, or with libraries that are missing: nobody could use it."""
    site.package(package, "from json import a_name_of_another_release")
    if metadata:
        site.distribution(package, "1.0.0")
    verdict = _caps("cpu")[package]
    assert not verdict
    assert verdict.reason.startswith(f"needs {package}: found ")
    assert "does not import: ImportError: cannot import name 'a_name_of_another_release'" in verdict.reason
    assert ("1.0.0" in verdict.reason) is metadata


def test_a_package_that_cannot_be_asked_now_is_asked_again(site, monkeypatch) -> None:
    site.package("triton_kernels")
    site.distribution("triton-kernels", "3.6.0")
    caps = _caps("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        words = "found triton_kernels 3.6.0; whether it imports could not be asked: FileNotFoundError"
        assert words in caps.why("triton_kernels")
    assert caps.triton_kernels


def test_a_package_that_is_absent(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_kernels", None)
    assert _caps("cpu")["triton_kernels"] == (False, "needs triton_kernels: found no triton_kernels")


# Reasons


@pytest.mark.parametrize("target", HAS)
def test_every_verdict_joins_what_was_needed_and_what_was_found(target: str) -> None:
    caps = _caps(target)
    for name, row in TABLE.items():
        available, reason = caps[name]
        if available:
            assert reason.startswith("found ")
            assert "needs" not in reason
        elif row.all_of:
            assert any(f"needs {TABLE[need].needs}: found " in reason for need in row.all_of if not caps[need])
        else:
            assert reason.startswith(f"needs {row.needs}: found ")
        if row.kind == "target":
            assert reason.endswith(f"found {caps.target.label}")


@pytest.mark.parametrize(
    ("lanes", "target", "name", "reason"),
    [
        pytest.param(_since("3.6.0"), "cuda:90", "gluon_cdna4", "needs gfx950: found sm90", id="design"),
        pytest.param(_since("3.6.0"), "cpu", "gluon_cdna4", "needs gfx950: found no GPU", id="no GPU"),
        pytest.param(_since("3.6.0"), "hip:gfx942", "gluon_hopper", "needs sm90: found gfx942", id="other vendor"),
        pytest.param(_since("3.5.1"), "hip:gfx942", "scaled_mfma", "needs gfx950: found gfx942", id="target"),
        pytest.param(
            _since("3.5.1"), "cuda:90", "tcgen05", "needs sm100 or sm101 or sm103 or sm110: found sm90", id="several targets"
        ),
        pytest.param(_since("3.5.1"), "cpu", "gpu", "needs a GPU: found no GPU", id="any GPU"),
        pytest.param({"3.5.1"}, "cpu", "triton_ge_36", "needs Triton 3.6 or newer: found 3.5.1", id="release"),
        pytest.param(
            {"3.5.1"},
            "hip:gfx950",
            "gluon_cdna4",
            "needs the Gluon API of Triton 3.6: found 3.5.1, whose AMDMFMALayout takes no [M, N, K] instruction shape",
            id="build",
        ),
        pytest.param(
            {"3.5.1"},
            "cuda:90",
            "gluon_cdna4",
            "needs the Gluon API of Triton 3.6: found 3.5.1, whose AMDMFMALayout takes no [M, N, K] instruction shape"
            "; needs gfx950: found sm90",
            id="build and target",
        ),
    ],
)
def test_reasons_in_full(lane: str, lanes: set[str], target: str, name: str, reason: str) -> None:
    if lane not in lanes:
        pytest.skip(f"is what Triton {', '.join(sorted(lanes))} says")
    assert _caps(target).why(name) == reason


def test_what_holds_says_what_was_found(lane: str) -> None:
    assert _caps("cuda:90").why("triton_gpu") == f"found Triton {lane}; found sm90"


# Asking


def test_a_flag_is_a_bool_and_a_verdict_is_true_or_false() -> None:
    caps = _caps("hip:gfx950")
    assert caps.gfx950 is True
    assert caps.sm90 is False
    assert caps["gfx950"] == Verdict(True, "found gfx950")
    assert caps["gfx950"]
    assert not caps["sm90"]
    assert caps.why("sm90") == "needs sm90: found gfx950"


@pytest.mark.parametrize(
    ("name", "words"),
    [("gluon_cdna", "gluon_cdna3"), ("hopper", "gluon_hopper"), ("tritn", "triton"), ("zzzz", "known are ")],
)
def test_a_name_that_does_not_exist_lists_the_nearest(name: str, words: str) -> None:
    caps = _caps("cpu")
    with pytest.raises(KeyError, match=f"no capability '{name}'; .*{words}"):
        caps[name]
    with pytest.raises(AttributeError, match=f"no capability '{name}'; .*{words}"):
        getattr(caps, name)
    with pytest.raises(KeyError, match=f"no capability '{name}'"):
        caps.require(name)
    assert not hasattr(caps, name)


def test_nearest_of_nothing() -> None:
    assert nearest("x", []) == "known are none"


def test_names_are_listed() -> None:
    caps = _caps("cpu")
    assert list(caps) == list(TABLE)
    assert len(caps) == len(TABLE)
    assert set(TABLE) <= set(dir(caps))
    assert repr(caps) == "Capabilities(cpu)"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda caps: pickle.loads(pickle.dumps(caps))])
def test_a_snapshot_can_be_copied_and_sent(duplicate) -> None:
    caps = _caps("hip:gfx950", tma="a test")
    assert duplicate(caps).gfx950 is True
    assert duplicate(caps).why("tma") == "disabled by a test"


def test_require() -> None:
    caps = _caps("cuda:90")
    assert caps.require("sm90") is None
    with pytest.raises(CapabilityError, match=r"^scaled_mfma: needs gfx950: found sm90$"):
        caps.require("scaled_mfma")
    with pytest.raises(CapabilityError, match=r"^scaled_mfma: needs gfx950: found sm90$"):
        compat.require("scaled_mfma", "cuda:90")


# Disabled


@pytest.mark.parametrize(("name", "need"), [(name, need) for name in KINDS["both"] for need in TABLE[name].all_of])
@pytest.mark.parametrize("target", ["hip:gfx950", "cuda:90"])
def test_what_needs_a_disabled_capability_does_not_hold(name: str, need: str, target: str) -> None:
    caps = _caps(target, **{need: "TEST"})
    assert caps[need] == (False, "disabled by TEST")
    assert not caps[name]


@pytest.mark.parametrize("need", ["gfx950", "gluon"])
def test_the_reason_names_the_disabled_capability(need: str) -> None:
    pytest.importorskip("triton")  # without Triton its absence comes first
    assert f"needs {need}: disabled by TEST" in _caps("hip:gfx950", **{need: "TEST"}).why("gluon_cdna4")


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("gluon_cdna4", {"gluon", "gluon_async_groups", "gluon_mfma_scaled", "gfx950"}),
        ("gluon_hopper", {"gluon", "gluon_wgmma", "gluon_warp_specialize_list", "sm90"}),
        ("triton_gpu", {"triton", "gpu"}),
    ],
)
def test_what_a_variant_uses_is_needed(name: str, needs: set[str]) -> None:
    assert needs <= set(TABLE[name].all_of)


@pytest.mark.parametrize(
    ("disabled", "name", "target"),
    [
        ("triton", "gluon_cdna4", "hip:gfx950"),
        ("scaled_mfma", "gluon_cdna4", "hip:gfx950"),
        ("triton", "gluon_hopper", "cuda:90"),
        ("wgmma", "gluon_hopper", "cuda:90"),
    ],
)
def test_gluon_kernels_need_what_they_use(disabled: str, name: str, target: str) -> None:
    assert f"needs {disabled}: disabled by TEST" in _caps(target, **{disabled: "TEST"}).why(name)


def test_disabling_leaves_the_rest_alone() -> None:
    plain, caps = _caps("hip:gfx950"), _caps("hip:gfx950", tma="TEST")
    assert {name for name in TABLE if plain[name] != caps[name]} == {"tma"}


def test_a_disabled_capability_is_not_probed(monkeypatch) -> None:
    monkeypatch.setattr("capgate.compat._probes.run", lambda *question: pytest.fail("was probed"))
    assert _caps("cpu", gluon="TEST").why("gluon") == "disabled by TEST"


def test_no_gpu_has_a_target_of_its_own() -> None:
    assert _caps("cpu").target == CPU
