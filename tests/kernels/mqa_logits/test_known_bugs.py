"""Bugs that other implementations shipped, one test or more for each, by their number in docs/known-bugs.md.

Not here: 11, which ../paged_mqa_logits has with what else concerns the paged operation. 3 and the compiled half of 12 are
in test_compile.py, what only a GPU shows of 4, 5 and 10 in tests/gpu.
"""

import logging
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_mqa_logits
from capgate.kernels.mqa_logits.api import describe
from capgate.kernels.mqa_logits.operands import Inputs
from capgate.kernels.mqa_logits.operation import operation
from support import judge

WITHOUT_GLUON = """
import sys

class NoGluon:
    def find_spec(self, name, path=None, target=None):
        importer = sys._getframe(1)
        while "importlib" in importer.f_code.co_filename:
            importer = importer.f_back
        importer = importer.f_globals["__name__"]
        # Triton's own launcher looks at Gluon's descriptors from 3.6 on.
        if name.startswith("triton.experimental") and not importer.startswith("triton."):
            raise ImportError(f"{importer} imports {name}")

sys.meta_path.insert(0, NoGluon())
import torch
from capgate.kernels import fp8_mqa_logits

q, k = torch.ones(3, 16, 32).to(torch.float8_e4m3fn), torch.ones(5, 32).to(torch.float8_e4m3fn)
starts, ends = torch.zeros(3, dtype=torch.int32), torch.full((3,), 5, dtype=torch.int32)
logits = fp8_mqa_logits(q, k, torch.ones(5), torch.ones(3, 16), starts, ends, variant=sys.argv[1])
assert (logits == 16 * 32).all(), logits
"""


def test_bug_1_no_variant_here_imports_gluon(variant: str) -> None:
    """1: An unconditional import of a Gluon submodule killed the classic fallback too, where there was no such submodule."""
    child = subprocess.run([sys.executable, "-c", WITHOUT_GLUON, variant], capture_output=True, text=True, timeout=1200)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("start", [1, 63, 64, 127, 128, 129, 200])
def test_bug_2_tail_mask_holds_for_windows_that_start_late(variant: str, start: int) -> None:
    """2: The tail mask compared an absolute end with a relative offset: wrong as soon as start > 0."""
    call = judge.make_call(4, 260, 16, 32)
    starts = torch.full((4,), start, dtype=torch.int32)
    judge.check(call._replace(starts=starts, ends=starts + torch.tensor([1, 40, 64, 131], dtype=torch.int32)), variant)


def test_bug_4_the_same_bytes_are_a_quarter_in_fnuz(variant: str) -> None:
    """4: FN / FNUZ confusion. A byte means half as much in e4m3fnuz, so a product of two a quarter, exactly."""
    if variant == "classic" and not compat.capabilities("cpu").interpreter_fp8_fnuz:
        pytest.skip(compat.capabilities("cpu").why("interpreter_fp8_fnuz"))
    call = judge.make_call(5, 20, 16, 32, "full")
    for tensor in (call.q, call.k):
        octets = tensor.view(torch.uint8)
        octets[octets == 0x80] = 0  # e4m3fn's -0 is e4m3fnuz's NaN
    fnuz = call._replace(q=call.q.view(torch.float8_e4m3fnuz), k=call.k.view(torch.float8_e4m3fnuz))
    logits = fp8_mqa_logits(*call, variant=variant)
    assert logits.count_nonzero() > 0
    assert torch.equal(fp8_mqa_logits(*fnuz, variant=variant) * 4, logits)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fnuz, torch.float8_e5m2, torch.bfloat16], ids=str)
def test_bug_4_mixed_dtypes_are_refused(variant: str, dtype: torch.dtype) -> None:
    """4: Mixed dtypes of q and k went through."""
    call = judge.make_call(3, 5, 16, 32)
    with pytest.raises(TypeError, match=r"^k: got torch\..*needs torch\.float8_e4m3fn, as q"):
        fp8_mqa_logits(*call._replace(k=call.k.float().to(dtype)), variant=variant)


@pytest.mark.usefixtures("interpreter")
def test_bug_4_e4m3fn_keeps_its_value_where_the_matrix_unit_reads_fnuz() -> None:
    """4: gfx942 reads e4m3fn bytes at half their value and -0 as NaN. What its launch converts, run in the interpreter."""
    if not compat.capabilities("cpu").interpreter_fp8_fnuz:
        pytest.skip(compat.capabilities("cpu").why("interpreter_fp8_fnuz"))
    from capgate.kernels.mqa_logits import classic

    call, out = judge.make_call(5, 20, 16, 32, "full"), torch.empty(5, 20)
    assert (call.q.view(torch.uint8) == 0x80).any()
    assert (call.k.view(torch.uint8) == 0x80).any()
    problem = describe(Inputs(*call), out, True, False)._replace(device=compat.capabilities("hip:gfx942").target)
    classic.kernel.launch(problem, Inputs(*call), out, clean_logits=True, compressed=False)
    answer = judge.formula(call)
    judge.agree(out, answer.logits, answer.magnitude)


def far_apart(tensor: torch.Tensor, dimension: int) -> torch.Tensor:
    """A copy whose last index along ``dimension`` lies 3 * 2**30 elements from the first: past 32 bits.

    The pages in between are never touched and so take no memory. As much is mapped below the tensor as above it: an offset
    that wraps to negative reads zeros, or writes where nobody looks, and the logits are wrong rather than the process dead.
    """
    step = 3 * 2**30 // (tensor.shape[dimension] - 1)
    strides = [step if d == dimension else stride for d, stride in enumerate(tensor.stride())]
    half = 2**32 * tensor.element_size()
    noreserve = 0x4000  # Linux's MAP_NORESERVE, which Python names from 3.13 on
    memory = mmap.mmap(-1, 2 * half, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve)
    flat = torch.frombuffer(memory, dtype=torch.uint8).view(tensor.dtype)
    return flat.as_strided(tensor.shape, strides, half // tensor.element_size()).copy_(tensor)


@pytest.mark.parametrize(("rows", "keys"), [(3, 3), (40, 300)], ids=["one-tile", "many-tiles"])
@pytest.mark.parametrize(
    ("operand", "dimension"),
    [
        *[("q", 0), ("q", 1), ("q", 2), ("k", 0), ("k", 1), ("k_scale", 0), ("weights", 0), ("weights", 1)],
        *[("starts", 0), ("ends", 0), ("out", 0), ("out", 1)],
    ],
    ids=lambda value: str(value),
)
def test_bug_5_offsets_pass_32_bits(variant: str, operand: str, dimension: int, rows: int, keys: int) -> None:
    """5: 32-bit offset overflow in logits, k and q; here in every operand and along every dimension."""
    call, out = judge.make_call(rows, keys, 3, 32, "full"), torch.full((rows, keys), 7.0)
    call = call._replace(starts=torch.ones_like(call.starts))
    if operand == "out":
        out = far_apart(out, dimension)
    elif operand in ("q", "k"):
        octets = getattr(call, operand).view(torch.uint8)
        call = call._replace(**{operand: far_apart(octets, dimension).view(torch.float8_e4m3fn)})
    else:
        call = call._replace(**{operand: far_apart(getattr(call, operand), dimension)})
    answer = judge.formula(call)
    fp8_mqa_logits(*call, out=out, variant=variant)
    assert out[:, 0].isneginf().all()
    judge.agree(out[:, 1:], answer.logits[:, 1:], answer.magnitude[:, 1:])


@pytest.mark.parametrize("rows", [1, 3, 5, 7])
@pytest.mark.parametrize("heads", [16, 64])
def test_bug_6_rows_that_share_a_program_keep_their_windows_apart(variant: str, rows: int, heads: int) -> None:
    """6: Two query rows per program: odd row counts, and two rows that belong to different requests."""
    call = judge.make_call(rows, 300, heads, 32)
    starts = torch.arange(rows, dtype=torch.int32) * 97 % 290  # one request per row, far apart and not in order
    apart = call._replace(starts=starts, ends=starts + 9)
    for clean_logits in (True, False):
        judge.check(apart, variant, clean_logits=clean_logits)
    judge.check(apart, variant, clean_logits=False, max_window=11)


def _windows(*pairs: tuple[int, int]) -> list[list[int]]:
    return [list(side) for side in zip(*pairs, strict=True)]


@pytest.mark.parametrize(
    ("starts", "ends"),
    [
        pytest.param(*_windows((0, 0), (5, 5), (0, 20)), id="empty"),
        pytest.param(*_windows((9, 2), (20, 0), (3, 4)), id="inverted"),
        pytest.param(*_windows((0, 21), (19, 10**9), (3, 2**31 - 1)), id="ends-past-the-last-key"),
        pytest.param(*_windows((20, 30), (25, 30), (2**31 - 1, 2**31 - 1)), id="wholly-past-the-last-key"),
        pytest.param(*_windows((-1, 5), (-40, 20), (-(2**31), 3)), id="starts-negative"),
        pytest.param(*_windows((-9, -2), (-9, 0), (-(2**31), -1)), id="wholly-negative"),
        pytest.param(*_windows((0, 0), (7, 7), (19, 19)), id="all-rows-empty"),
        pytest.param(*_windows((-(2**31), 2**31 - 1), (2**31 - 1, -(2**31)), (0, 2**31 - 1)), id="ends-of-int32"),
    ],
)
@pytest.mark.parametrize(
    ("clean_logits", "max_window"), [(True, None), (False, None), (False, 12)], ids=["clean", "unclean", "compressed"]
)
def test_bug_7_windows_of_every_kind(
    variant: str, starts: list[int], ends: list[int], clean_logits: bool, max_window: int | None
) -> None:
    """7: Empty and inverted windows, end > N, start < 0, all rows empty."""
    call = judge.make_call(3, 20, 16, 32)
    call = call._replace(starts=torch.tensor(starts, dtype=torch.int32), ends=torch.tensor(ends, dtype=torch.int32))
    judge.check(call, variant, clean_logits=clean_logits, max_window=max_window)


@pytest.mark.parametrize(("rows", "keys"), [(0, 20), (3, 0), (0, 0)], ids=["no-rows", "no-keys", "neither"])
@pytest.mark.parametrize(
    ("clean_logits", "max_window"),
    [(True, None), (False, None), (False, 12), (False, 0)],
    ids=["clean", "unclean", "compressed", "no-columns"],
)
def test_bug_7_no_rows_and_no_keys(variant: str, rows: int, keys: int, clean_logits: bool, max_window: int | None) -> None:
    """7: N == 0 and S == 0: a zero-size grid is a launch error."""
    call = judge.make_call(rows, keys, 16, 32, "extreme")
    judge.check(call, variant, clean_logits=clean_logits, max_window=max_window)
    new = fp8_mqa_logits(*call, clean_logits=clean_logits, max_window=max_window, variant=variant)
    assert new.shape == (rows, keys if max_window is None else max_window)


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 17, 33, 65, 100, 127])
def test_bug_8_head_counts_need_not_be_powers_of_two(variant: str, heads: int) -> None:
    """8: Head counts that are not a power of two."""
    judge.check(judge.make_call(5, 20, heads, 32, "full"), variant)


@pytest.mark.parametrize("keys", [1, 113, 256, 257])
def test_bug_9_rows_are_padded_to_1024_bytes(variant: str, keys: int) -> None:
    """9: A caller that assumes stride(0) == N; rows start on boundaries of 256 elements."""
    call = judge.make_call(5, keys, 16, 32, "full")
    logits = fp8_mqa_logits(*call, variant=variant)
    assert logits.stride() == (-(-keys // 256) * 256, 1)
    answer = judge.formula(call)
    judge.agree(logits, answer.logits, answer.magnitude)


@pytest.mark.parametrize(
    "layout", [{"gap": 1}, {"gap": 300}, {"order": (1, 0)}, {"step": 2}], ids=["gap", "wide-gap", "columns-first", "stepped"]
)
def test_bug_9_out_may_have_any_row_stride(variant: str, layout: dict[str, object]) -> None:
    """9: stride(0) != N of a given out."""
    call = judge.make_call(5, 20, 16, 32, "ragged")
    out = judge.sentinels(5, 20, **layout)
    assert out.stride(0) != 20
    judge.check(call, variant, out=out)


@pytest.fixture
def broken_classic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A classic variant that would be taken on this machine, and whose module does not import."""
    classic = operation.variants["classic"]
    (tmp_path / "broken_variant.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(classic, "_implementation", "broken_variant:launch")
    for attribute, value in {"requires": (), "accepts": None, "unless_named": None}.items():
        monkeypatch.setattr(classic, attribute, value)
    monkeypatch.setattr(operation, "_set_aside", {})
    with compat.override():  # forgets on leaving which variant was taken
        yield


@pytest.mark.usefixtures("broken_classic")
def test_bug_10_a_fallback_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """10: A swallowed exception cost one user hours a step. A fallback must say so once."""
    call = judge.make_call(5, 20, 16, 32)
    with caplog.at_level(logging.WARNING, logger="capgate"):
        for _ in range(3):
            judge.check(call, None)
    (record,) = caplog.records
    assert "classic set aside" in record.getMessage()
    assert "no_such_module" in record.getMessage()


@pytest.mark.usefixtures("broken_classic")
def test_bug_10_a_named_variant_never_falls_back() -> None:
    """10: Nor does a variant that was asked for by name give way to another."""
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        fp8_mqa_logits(*judge.make_call(5, 20, 16, 32), variant="classic")


@pytest.mark.usefixtures("interpreter")
def test_bug_12_any_number_of_compute_units_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """12: CU count hard-coded. Few query rows split their keys over as many programs as the device can hold."""
    from capgate.kernels.mqa_logits import classic

    call, logits, programs = judge.make_call(3, 700, 16, 32, "causal"), [], set()
    for count in (1, 2, 304):
        monkeypatch.setattr(classic, "multiprocessors", lambda device, count=count: count)
        out = judge.check(call, "classic")
        logits.append(out.view(torch.int32))
        problem = describe(Inputs(*call), out, True, False)
        grid = classic.prepare(problem, Inputs(*call), out, clean_logits=True, compressed=False).grid
        programs.add(grid)
    assert len(programs) > 1
    assert all(torch.equal(other, logits[0]) for other in logits)


def test_bug_13_a_stock_wheel_passes_the_tuned_paths_gate_from_3_6_on() -> None:
    """13: The tuned path was guarded by a probe that is never true on released Triton, so it never ran for anyone."""
    import triton

    caps = compat.capabilities("hip:gfx950")
    assert caps.triton_gpu, caps.why("triton_gpu")
    expected = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 6)
    assert caps.gluon_cdna4 is expected, caps.why("gluon_cdna4")


@pytest.mark.parametrize("suffix", [".dev20251120", "+git1a2b3c", "+rocm7.1.0.gitabc", "rc1"])
def test_bug_14_builds_of_one_release_pass_every_gate_alike(monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """14: 3.6.0.dev... passed one gate and failed the other because one compared base_version and the other did not."""
    import triton

    for name in ("hip:gfx950", "hip:gfx942", "cuda:90", "cpu"):
        target = compat.capabilities(name).target
        flags = []
        for text in ("3.6.0", f"3.6.0{suffix}"):
            monkeypatch.setattr(triton, "__version__", text)
            caps = compat.Capabilities(target)
            flags.append({capability: bool(caps[capability]) for capability in caps})
        assert flags[0] == flags[1]
