"""Schedules between the real DeepGEMM and capgate, in both directions: where DeepGEMM is installed, on sm90.

It is the module ``deep_gemm`` of DeepGEMM or sgl-deep-gemm, which compiles its kernels with nvcc at a first call, or
``sgl_deep_gemm``.
"""

import os
import shutil
from importlib import import_module
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.compat.thirdparty import Raised, ask
from capgate.kernels import fp8_paged_mqa_logits, paged_mqa_schedule
from capgate.kernels.paged_mqa_logits.operation import operation
from support import judge, paged, schedules

pytestmark = pytest.mark.gpu

UNIT = 256
NAMES = ("deep_gemm", "sgl_deep_gemm")
LENGTHS = {
    "even": [8192] * 64,
    "random": [(7919 * request) % 20000 + 1 for request in range(100)],
    "empty requests": [300, 0, 1000, 0, 0, 70000, 0],
    "fewer units than workers": [1, 0, 257],
    "unit edges": [255, 256, 257, 511, 512, 513],
}
batches = pytest.mark.parametrize("lens", LENGTHS.values(), ids=LENGTHS)


@pytest.fixture(scope="module")
def library(gpu: torch.device) -> Any:
    target = compat.capabilities(gpu).target
    if target.label != "sm90":
        pytest.skip(f"schedules of 256 keys are sm90's: found {target.label}")
    if not (os.environ.get("CUDA_HOME") or shutil.which("nvcc")):
        pytest.skip("DeepGEMM compiles its kernels: nvcc is not on PATH and CUDA_HOME is not set")
    found = {name: ask(lambda name=name: import_module(name)) for name in NAMES}
    for module in found.values():
        if not isinstance(module, Raised):
            return module
    pytest.skip("; ".join(f"{name} does not import: {raised.words}" for name, raised in found.items()))


def make(lens: list[int], next_n: int = 1) -> paged.PagedCall:
    """A call of 64 heads of 128 dims whose rows have lengths of their own, as DeepGEMM wants them."""
    call = paged.make_call(lens, next_n, 64, 128, device="cuda")
    return call._replace(context_lens=call.seen.clamp(min=0).int().contiguous())


def theirs(library: Any, call: paged.PagedCall) -> torch.Tensor:
    return library.get_paged_mqa_logits_metadata(call.context_lens, call.kv_cache.shape[1], library.get_num_sms())


def score(library: Any, call: paged.PagedCall, schedule: torch.Tensor, columns: int) -> torch.Tensor:
    """DeepGEMM's logits: its function of whichever generation."""
    rest = (
        call.kv_cache,
        call.weights,
        call.context_lens,
        call.block_table.clamp(0, len(call.kv_cache) - 1),
        schedule,
        columns,
    )
    if hasattr(library, "fp8_fp4_paged_mqa_logits"):
        return library.fp8_fp4_paged_mqa_logits((call.q, None), *rest)
    return library.fp8_paged_mqa_logits(call.q, *rest)


@batches
def test_ours_is_theirs_word_for_word(library: Any, lens: list[int]) -> None:
    call = make(lens)
    made = theirs(library, call)
    assert made.shape == (library.get_num_sms() + 1, 2)
    assert torch.equal(made, paged_mqa_schedule(call.context_lens, 64, len(made) - 1, chunk_keys=UNIT))
    assert list(map(tuple, made.tolist())) == schedules.even(schedules.units_of(lens, UNIT), len(made) - 1)


@batches
@pytest.mark.parametrize("next_n", [1, 2])
def test_their_kernel_reads_ours(library: Any, lens: list[int], next_n: int) -> None:
    call, columns = make(lens, next_n), max(lens)
    ours = paged_mqa_schedule(call.context_lens, 64, library.get_num_sms(), chunk_keys=UNIT)
    units = schedules.units_of(lens, UNIT)
    taken = [place for share in schedules.read(ours.tolist(), units) for place in share]  # before a kernel that would not end
    assert taken == schedules.places(units)
    logits, answer = score(library, call, ours, columns), paged.formula(call, columns)
    inside = answer.inside
    assert judge.calc_diff(logits.masked_fill(~inside, 0), answer.logits.masked_fill(~inside, 0)) < judge.CALC_DIFF
    assert torch.equal(logits[inside], score(library, call, theirs(library, call), columns)[inside])


@batches
@pytest.mark.parametrize("next_n", [1, 2])
@pytest.mark.parametrize("variant", list(operation.variants))
def test_our_kernels_read_theirs(library: Any, gpu: torch.device, variant: str, lens: list[int], next_n: int) -> None:
    if operation.explain(operation.example(gpu), variant=variant).variant is None:
        pytest.skip(f"{variant} does not run here")
    call = make(lens, next_n)
    schedule = theirs(library, call)
    out = paged.check(call, variant, max(lens), clean_logits=True, schedule=schedule, schedule_chunk_keys=UNIT)
    own = fp8_paged_mqa_logits(*call, max_context_len=max(lens), clean_logits=True, variant=variant)
    assert torch.equal(out.view(torch.int32), own.view(torch.int32))
