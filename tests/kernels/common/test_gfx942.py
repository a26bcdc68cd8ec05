"""What classic kernels do for gfx942, in Triton's interpreter: conversion to e4m3fnuz, and relu without a maximum."""

import pytest
import torch

from capgate import compat
from capgate.kernels.mqa_logits.api import describe
from capgate.kernels.mqa_logits.operands import Inputs
from support import fused_selection, judge, paged, selection

FNUZ = "interpreter_fp8_fnuz"
pytestmark = [
    pytest.mark.usefixtures("interpreter"),
    pytest.mark.skipif(not compat.capabilities("cpu")[FNUZ], reason=compat.capabilities("cpu").why(FNUZ)),
]


@pytest.mark.parametrize("words", [False, True], ids=["bytes", "words"])
def test_every_byte_becomes_half_its_value(words: bool) -> None:
    """Each beside every kind of neighbour: what a sum carries out of a byte would change the next."""
    from support.gfx942_kernels import convert

    for order in (torch.arange(256), torch.arange(256).flip(0), torch.arange(256) * 127 % 256):
        fn, fnuz = order.to(torch.uint8), torch.empty(256, dtype=torch.uint8)
        convert[(1,)](fn, fnuz, words)
        values, halves = fn.view(torch.float8_e4m3fn).double(), fnuz.view(torch.float8_e4m3fnuz).double()
        assert torch.equal(halves.isnan(), values.isnan())
        assert torch.equal(2 * halves.nan_to_num(), values.nan_to_num())


def logits(target: str, call: judge.Call) -> torch.Tensor:
    """Of the kernel that a call on the target would launch."""
    from capgate.kernels.mqa_logits import classic

    out = torch.empty(call.q.shape[0], call.k.shape[0])
    problem = describe(Inputs(*call), out, True, False)._replace(device=compat.capabilities(target).target)
    classic.kernel.launch(problem, Inputs(*call), out, clean_logits=True, compressed=False)
    return out


def test_twice_the_relu_times_half_the_weights_has_the_bits_of_a_maximum() -> None:
    call = judge.make_call(3, 140, 16, 32, "full", dtype=torch.float8_e4m3fnuz)
    assert torch.equal(logits("hip:gfx942", call), logits("hip:gfx950", call))


def test_so_have_the_scores_of_a_fused_selection() -> None:
    call = judge.make_call(3, 140, 16, 32, "full", dtype=torch.float8_e4m3fnuz)
    cached = paged.make_call([90, 0, 141], 2, 16, 32, dtype=torch.float8_e4m3fnuz)
    with fused_selection.tables(fused_selection.tuned(block_keys=16)):
        for run in (
            lambda target: fused_selection.run(call, 9, target),
            lambda target: fused_selection.run_paged(cached, 9, target, max_context_len=141),
        ):
            (indices, scores, _), (others, same_scores, _) = run("hip:gfx942"), run("hip:gfx950")
            assert torch.equal(indices, others)
            assert selection.same(scores, same_scores)


def test_nan_stays_where_there_is_no_maximum() -> None:
    """In float32: Triton's interpreter reads fp8's NaNs as numbers."""
    from support.gfx942_kernels import relu_of

    x, out = torch.tensor([float("nan"), -1.5, 2.5, -0.0]), torch.empty(4)
    relu_of[(1,)](x, out)
    assert out[0].isnan()
    assert out[1:].tolist() == [0.0, 5.0, 0.0]


def test_keys_convert_alike_by_words_and_by_bytes() -> None:
    call = judge.make_call(3, 140, 16, 32, "full")
    apart = torch.empty(140 * 33, dtype=torch.uint8).view(torch.float8_e4m3fn).as_strided((140, 32), (33, 1)).copy_(call.k)
    assert torch.equal(logits("hip:gfx942", call), logits("hip:gfx942", call._replace(k=apart)))
