"""The judge judged: against the formula written out as loops, and by answers it must refuse."""

import pytest
import torch

from support import judge


@pytest.mark.parametrize("max_window", [None, 4])
def test_the_formula_is_the_sum_written_out(max_window: int | None) -> None:
    call = judge.make_call(5, 7, 3, 32, "ragged")
    q, k, k_scale, weights, starts, ends = (tensor.double().tolist() for tensor in call)
    answer = judge.formula(call, max_window)
    for i in range(5):
        for column in range(7 if max_window is None else max_window):
            j = column if max_window is None else int(starts[i]) + column
            inside = 0 <= j < 7 and starts[i] <= j < ends[i]
            assert answer.inside[i, column] == inside
            if inside:
                dots = [sum(x * y for x, y in zip(q[i][h], k[j], strict=True)) for h in range(3)]
                expected = k_scale[j] * sum(weights[i][h] * max(dots[h], 0) for h in range(3))
                assert answer.logits[i, column].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["causal", "suffix", "context-parallel", "packed", "ragged", "extreme"])
def test_windows_have_cells_on_both_sides(kind: str) -> None:
    inside = judge.formula(judge.make_call(17, 76, 1, 32, kind)).inside
    assert 0 < int(inside.sum()) < inside.numel()


def test_packed_windows_put_neighbouring_rows_into_different_requests() -> None:
    inside = judge.formula(judge.make_call(17, 76, 1, 32, "packed")).inside
    assert not (inside[0::2][:8] & inside[1::2]).any(1).all()
    assert (inside[:-1] & inside[1:]).any()


@pytest.mark.parametrize("wrong", [0.99, 1.01, float("nan"), float("inf")])
def test_one_wrong_cell_among_many_is_refused(wrong: float) -> None:
    answer = judge.formula(judge.make_call(61, 113, 3, 32, "full"))
    logits = answer.logits.float()
    judge.agree(logits, answer.logits, answer.magnitude)
    worst = int(answer.logits.abs().argmax())
    logits.view(-1)[worst] *= wrong
    with pytest.raises(AssertionError):
        judge.agree(logits, answer.logits, answer.magnitude)


def test_logits_rounded_to_bfloat16_agree_and_cut_off_ones_do_not() -> None:
    answer = judge.formula(judge.make_call(61, 113, 3, 32, "full"))
    logits = answer.logits.float()
    judge.agree(logits.bfloat16(), answer.logits, answer.magnitude)
    cut = (logits.view(torch.int32) & -(2**16)).view(torch.float32).bfloat16()
    with pytest.raises(AssertionError):
        judge.agree(cut, answer.logits, answer.magnitude)


def test_calc_diff_of_zeros_is_zero() -> None:
    assert judge.calc_diff(torch.zeros(3), torch.zeros(3)) == 0.0
    assert judge.calc_diff(torch.ones(3), -torch.ones(3)) == 2.0


def test_layouts_keep_the_values_and_change_the_strides() -> None:
    tensor = torch.arange(24.0).view(2, 3, 4)
    layout = judge.laid_out(tensor, order=(2, 0, 1), gap=3, step=2, offset=5)
    assert torch.equal(layout, tensor)
    assert layout.stride() == (9, 2, 21)
    assert layout.storage_offset() == 5
