"""Bad input: the right error, it names the argument, and nothing has been written."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from capgate import compat
from capgate.kernels import fp8_mqa_logits
from support import judge

ROWS, KEYS, HEADS, DIM = 3, 5, 16, 32
FN, FNUZ, INT = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int32


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


def nested(*shape: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its older nested tensors
        return torch.nested.nested_tensor([zeros(*shape[1:])] * shape[0])


# What replaces good arguments, the error, and the argument that it names.
BAD: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], str]] = {
    "q-list": ({"q": lambda: [1.0]}, TypeError, "q"),
    "q-two-dimensional": ({"q": lambda: zeros(ROWS, DIM, dtype=FN)}, ValueError, "q"),
    "q-no-heads": ({"q": lambda: zeros(ROWS, 0, DIM, dtype=FN)}, ValueError, "q"),
    "q-too-many-heads": ({"q": lambda: zeros(ROWS, 129, DIM, dtype=FN)}, ValueError, "q"),
    "q-dim-48": ({"q": lambda: zeros(ROWS, HEADS, 48, dtype=FN)}, ValueError, "q"),
    "q-bfloat16": ({"q": lambda: zeros(ROWS, HEADS, DIM, dtype=torch.bfloat16)}, TypeError, "q"),
    "q-requires-grad": ({"q": lambda: zeros(ROWS, HEADS, DIM).requires_grad_().to(FN)}, ValueError, "q"),
    "q-e5m2": ({"q": lambda: zeros(ROWS, HEADS, DIM, dtype=torch.float8_e5m2)}, TypeError, "q"),
    "k-none": ({"k": lambda: None}, TypeError, "k"),
    "k-three-dimensional": ({"k": lambda: zeros(KEYS, 1, DIM, dtype=FN)}, ValueError, "k"),
    "k-other-dim": ({"k": lambda: zeros(KEYS, 64, dtype=FN)}, ValueError, "k"),
    "k-other-fp8": ({"k": lambda: zeros(KEYS, DIM, dtype=FNUZ)}, TypeError, "k"),
    "k-bytes": ({"k": lambda: zeros(KEYS, DIM, dtype=torch.uint8)}, TypeError, "k"),
    "k-requires-grad": ({"k": lambda: zeros(KEYS, DIM, dtype=FN).requires_grad_()}, ValueError, "k"),
    "k-other-device": ({"k": lambda: zeros(KEYS, DIM, dtype=FN, device="meta")}, ValueError, "k"),
    "k_scale-number": ({"k_scale": lambda: 1.0}, TypeError, "k_scale"),
    "k_scale-scalar": ({"k_scale": lambda: zeros()}, ValueError, "k_scale"),
    "k_scale-short": ({"k_scale": lambda: zeros(KEYS - 1)}, ValueError, "k_scale"),
    "k_scale-row": ({"k_scale": lambda: zeros(1, KEYS)}, ValueError, "k_scale"),
    "k_scale-two-columns": ({"k_scale": lambda: zeros(KEYS, 2)}, ValueError, "k_scale"),
    "k_scale-half": ({"k_scale": lambda: zeros(KEYS, dtype=torch.float16)}, TypeError, "k_scale"),
    "k_scale-other-device": ({"k_scale": lambda: zeros(KEYS, device="meta")}, ValueError, "k_scale"),
    "k_scale-requires-grad": ({"k_scale": lambda: zeros(KEYS).requires_grad_()}, ValueError, "k_scale"),
    "weights-tuple": ({"weights": lambda: (1.0,)}, TypeError, "weights"),
    "weights-transposed": ({"weights": lambda: zeros(HEADS, ROWS)}, ValueError, "weights"),
    "weights-three-dimensional": ({"weights": lambda: zeros(ROWS, HEADS, 1)}, ValueError, "weights"),
    "weights-double": ({"weights": lambda: zeros(ROWS, HEADS, dtype=torch.float64)}, TypeError, "weights"),
    "weights-other-device": ({"weights": lambda: zeros(ROWS, HEADS, device="meta")}, ValueError, "weights"),
    "weights-sparse": ({"weights": lambda: zeros(ROWS, HEADS).to_sparse()}, TypeError, "weights"),
    "weights-mkldnn": ({"weights": lambda: zeros(ROWS, HEADS).to_mkldnn()}, TypeError, "weights"),
    "weights-jagged": (
        {"weights": lambda: torch.nested.nested_tensor([zeros(HEADS)] * ROWS, layout=torch.jagged)},
        TypeError,
        "weights",
    ),
    "weights-nested": ({"weights": lambda: nested(ROWS, HEADS)}, TypeError, "weights"),
    "weights-requires-grad": ({"weights": lambda: zeros(ROWS, HEADS).requires_grad_()}, ValueError, "weights"),
    "starts-list": ({"starts": lambda: [0] * ROWS}, TypeError, "starts"),
    "starts-long": ({"starts": lambda: zeros(ROWS + 1, dtype=INT)}, ValueError, "starts"),
    "starts-int64": ({"starts": lambda: zeros(ROWS, dtype=torch.int64)}, TypeError, "starts"),
    "starts-sparse": ({"starts": lambda: zeros(ROWS, dtype=INT).to_sparse()}, TypeError, "starts"),
    "starts-other-device": ({"starts": lambda: zeros(ROWS, dtype=INT, device="meta")}, ValueError, "starts"),
    "ends-none": ({"ends": lambda: None}, TypeError, "ends"),
    "ends-column": ({"ends": lambda: zeros(ROWS, 1, dtype=INT)}, ValueError, "ends"),
    "ends-float": ({"ends": lambda: zeros(ROWS)}, TypeError, "ends"),
    "ends-other-device": ({"ends": lambda: zeros(ROWS, dtype=INT, device="meta")}, ValueError, "ends"),
    "clean_logits-with-max_window": ({"max_window": lambda: 4}, ValueError, "clean_logits"),
    "clean_logits-text": ({"clean_logits": lambda: "no"}, TypeError, "clean_logits"),
    "clean_logits-number": ({"clean_logits": lambda: 1}, TypeError, "clean_logits"),
    "max_window-bool": ({"max_window": lambda: True, "clean_logits": lambda: False}, TypeError, "max_window"),
    "max_window-tensor": ({"max_window": lambda: torch.tensor(4), "clean_logits": lambda: False}, TypeError, "max_window"),
    "max_window-negative": ({"max_window": lambda: -1, "clean_logits": lambda: False}, ValueError, "max_window"),
    "max_window-fraction": ({"max_window": lambda: 2.5, "clean_logits": lambda: False}, TypeError, "max_window"),
    "max_window-text": ({"max_window": lambda: "4", "clean_logits": lambda: False}, TypeError, "max_window"),
    "out-array": ({"out": lambda: zeros(ROWS, KEYS).numpy()}, TypeError, "out"),
    "out-narrow": ({"out": lambda: zeros(ROWS, KEYS - 1)}, ValueError, "out"),
    "out-padded-columns": ({"out": lambda: zeros(ROWS, 256)}, ValueError, "out"),
    "out-three-dimensional": ({"out": lambda: zeros(ROWS, KEYS, 1)}, ValueError, "out"),
    "out-not-compressed": (
        {"out": lambda: zeros(ROWS, KEYS), "max_window": lambda: 4, "clean_logits": lambda: False},
        ValueError,
        "out",
    ),
    "out-half": ({"out": lambda: zeros(ROWS, KEYS, dtype=torch.float16)}, TypeError, "out"),
    "out-float32-for-bfloat16": ({"logits_dtype": lambda: torch.bfloat16}, TypeError, "out"),
    "logits_dtype-half": ({"logits_dtype": lambda: torch.float16}, ValueError, "logits_dtype"),
    "logits_dtype-text": ({"logits_dtype": lambda: "bfloat16"}, TypeError, "logits_dtype"),
    "logits_dtype-none": ({"logits_dtype": lambda: None}, TypeError, "logits_dtype"),
    "out-other-device": ({"out": lambda: zeros(ROWS, KEYS, device="meta")}, ValueError, "out"),
    "out-sparse": ({"out": lambda: zeros(ROWS, KEYS).to_sparse()}, TypeError, "out"),
    "out-requires-grad": ({"out": lambda: zeros(ROWS, KEYS).requires_grad_()}, ValueError, "out"),
    "out-rows-expanded": ({"out": lambda: zeros(1, KEYS).expand(ROWS, KEYS)}, ValueError, "out"),
    "out-columns-expanded": ({"out": lambda: zeros(ROWS, 1).expand(ROWS, KEYS)}, ValueError, "out"),
    "out-rows-overlap": ({"out": lambda: zeros(99).as_strided((ROWS, KEYS), (KEYS - 1, 1))}, ValueError, "out"),
    "out-columns-overlap": ({"out": lambda: zeros(99).as_strided((ROWS, KEYS), (1, ROWS - 1))}, ValueError, "out"),
    "variant-unknown": ({"variant": lambda: "clasic"}, ValueError, "variant"),
    "variant-empty": ({"variant": lambda: ""}, ValueError, "variant"),
    "variant-number": ({"variant": lambda: 3}, TypeError, "variant"),
}


def storage_bytes(value: Any) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor) or value.device.type == "meta" or value.layout != torch.strided:
        return None
    if value.is_nested:
        return None
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).clone()


@pytest.mark.parametrize(("replacements", "error", "argument"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    replacements: dict[str, Callable[[], Any]], error: type[Exception], argument: str
) -> None:
    arguments = judge.make_call(ROWS, KEYS, HEADS, DIM, "full")._asdict()
    if "max_window" not in replacements:
        arguments["out"] = judge.sentinels(ROWS, KEYS)
    arguments |= {name: make() for name, make in replacements.items()}
    before = {name: storage_bytes(value) for name, value in arguments.items()}
    with pytest.raises(error, match=f"^{argument}: "):
        fp8_mqa_logits(**arguments)
    for name, octets in before.items():
        assert octets is None or torch.equal(storage_bytes(arguments[name]), octets), name


@pytest.mark.parametrize("position", range(6))
def test_every_operand_is_required(position: int) -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM)
    with pytest.raises(TypeError, match=f"'{call._fields[position]}'"):
        fp8_mqa_logits(**{name: tensor for name, tensor in call._asdict().items() if name != call._fields[position]})


@pytest.mark.parametrize("rows", [0, ROWS])
def test_an_impossible_variant_is_refused_with_its_reason(rows: int) -> None:
    call, out = judge.make_call(rows, KEYS, HEADS, DIM), judge.sentinels(rows, KEYS)
    before = storage_bytes(out)
    refused = pytest.raises(compat.CapabilityError, match=r"fp8_mqa_logits cannot run variant 'classic': .*disabled by")
    with compat.override(disable=["triton"]), refused:
        fp8_mqa_logits(*call, out=out, variant="classic")
    assert torch.equal(storage_bytes(out), before)


def test_a_switch_to_an_impossible_variant_is_refused_too() -> None:
    with (
        compat.override(disable=["triton"], variant="fp8_mqa_logits=classic"),
        pytest.raises(compat.CapabilityError, match="variant 'classic'"),
    ):
        fp8_mqa_logits(*judge.make_call(ROWS, KEYS, HEADS, DIM))


@pytest.mark.parametrize("name", ["q", "k", "k_scale", "weights", "out"])
def test_tensors_that_require_grad_serve_where_grad_is_off(variant: str, name: str) -> None:
    arguments = judge.make_call(ROWS, KEYS, HEADS, DIM)._asdict() | {"out": torch.empty(ROWS, KEYS)}
    expected = fp8_mqa_logits(**arguments, variant=variant).clone()
    arguments[name] = arguments[name].clone().requires_grad_()
    with torch.no_grad():
        logits = fp8_mqa_logits(**arguments, variant=variant)
    assert torch.equal(logits, expected)
    assert logits.grad_fn is None


def test_shapes_of_one_row_or_column_may_have_any_strides(variant: str) -> None:
    """Strides along dimensions of size 1 mean nothing, so they overlap nothing."""
    call = judge.make_call(1, KEYS, HEADS, DIM, "full")
    judge.check(call, variant, out=judge.sentinels(1, KEYS).as_strided((1, KEYS), (0, 1)))
    one_key = judge.make_call(ROWS, 1, HEADS, DIM, "full")
    judge.check(one_key, variant, out=judge.sentinels(ROWS, 1).as_strided((ROWS, 1), (2, 0)))


def test_a_dense_call_in_order_costs_no_search_for_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def search(name: str, tensor: Any) -> None:
        raise AssertionError(f"{name} was looked at by itself")

    monkeypatch.setattr("capgate.kernels.common.operands.check_strided", search)
    fp8_mqa_logits(*judge.make_call(ROWS, KEYS, HEADS, DIM))
    call = judge.make_call(1, 1, 1, DIM)
    fp8_mqa_logits(*call._replace(k_scale=call.k_scale[:, None]))
    with pytest.raises(AssertionError, match="q was looked at"):
        fp8_mqa_logits(*call._replace(weights=zeros(1)))


def test_a_window_may_be_numpy_s_integer() -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM)
    logits = fp8_mqa_logits(*call, clean_logits=False, max_window=np.int32(3))
    assert logits.shape == (ROWS, 3)
    with pytest.raises(TypeError, match=r"^max_window: got bool"):
        fp8_mqa_logits(*call, clean_logits=False, max_window=np.bool_(True))


# Memory that is written and read


def placed(memory: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor at a byte offset of ``memory``."""
    octets = like.numel() * like.element_size()
    return memory[offset : offset + octets].view(like.dtype).view(like.shape).copy_(like)


@pytest.mark.parametrize("position", range(6))
def test_out_may_touch_an_operand_s_memory_but_share_none(variant: str, position: int) -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM, "ragged")
    expected = fp8_mqa_logits(*call, variant=variant)
    name, tensor = call._fields[position], call[position]
    octets, size = tensor.numel() * tensor.element_size(), ROWS * KEYS * 4
    memory, middle = torch.zeros(2 * octets + size, dtype=torch.uint8), octets - octets % 4
    out = memory[middle : middle + size].view(torch.float32).view(ROWS, KEYS)
    step = tensor.element_size()
    last = (middle - octets) // step * step
    first = middle + -(-size // step) * step
    for offset, fine in ((last, True), (last + step, False), (first, True), (first - step, False), (middle, False)):
        memory.zero_()
        shared = call._replace(**{name: placed(memory, offset, tensor)})
        if fine:
            fp8_mqa_logits(*shared, out=out, variant=variant)
            assert torch.equal(out, expected)
        else:
            before = memory.clone()
            with pytest.raises(ValueError, match=f"^out: shares memory with {name}, needs "):
                fp8_mqa_logits(*shared, out=out, variant=variant)
            assert torch.equal(memory, before)


def test_columns_and_rows_of_one_buffer_are_no_overlap() -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM, "ragged")
    expected = fp8_mqa_logits(*call)
    wide, tall = torch.zeros(ROWS, 64), torch.zeros(2 * ROWS, 16)
    apart = {
        "neighbouring columns": (wide[:, :KEYS], wide[:, KEYS : KEYS + HEADS]),
        "columns in turn": (wide[:, : 2 * KEYS : 2], wide[:, 1 : 2 * HEADS : 2]),
        "rows in turn": (tall[::2, :KEYS], tall[1::2, :HEADS]),
        "columns of a transposed buffer": (tall.mT[:KEYS, :ROWS].mT, tall.mT[:HEADS, ROWS:].mT),
    }
    for what, (out, weights) in apart.items():
        weights.copy_(call.weights)
        fp8_mqa_logits(*call._replace(weights=weights), out=out)
        assert torch.equal(out, expected), what
    for out, weights in ((wide[:, :KEYS], wide[:, KEYS - 1 : KEYS - 1 + HEADS]), (tall[::2, :KEYS], tall[:ROWS, :HEADS])):
        with pytest.raises(ValueError, match=r"^out: shares memory with weights"):
            fp8_mqa_logits(*call._replace(weights=weights), out=out)


# Derivatives, which logits do not have


# torch.func's jvp imports a module of torch that torch warns of.
JIT = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@JIT
@pytest.mark.parametrize("name", ["q", "k", "k_scale", "weights"])
def test_forward_ad_is_refused(name: str) -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM)
    tensor = getattr(call, name).float()
    refused = pytest.raises(ValueError, match=f"^{name}: .*differentiates")

    def scores(value: torch.Tensor) -> torch.Tensor:
        return fp8_mqa_logits(*call._replace(**{name: value.to(getattr(call, name).dtype)}))

    with refused:
        torch.func.jvp(scores, (tensor,), (torch.ones_like(tensor),))
    with forward_ad.dual_level(), refused:
        scores(forward_ad.make_dual(tensor, torch.ones_like(tensor)))
    with forward_ad.dual_level(), torch.no_grad(), refused:  # which does not turn it off
        scores(forward_ad.make_dual(tensor, torch.ones_like(tensor)))


@JIT
@pytest.mark.parametrize("name", ["q", "k", "k_scale", "weights"])
def test_gradients_of_torch_func_are_refused(name: str) -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM)
    tensor = getattr(call, name).float()

    def total(value: torch.Tensor) -> torch.Tensor:
        return fp8_mqa_logits(*call._replace(**{name: value.to(getattr(call, name).dtype)})).sum()

    with pytest.raises(ValueError, match=f"^{name}: "):
        torch.func.grad(total)(tensor)
    with pytest.raises(ValueError, match=f"^{name}: "):
        torch.func.grad(lambda values: torch.vmap(total)(values).sum())(torch.stack([tensor, tensor]))
    with pytest.raises(ValueError, match=f"^{name}: "):  # of the outer derivative, in the inner one
        torch.func.jvp(lambda x: torch.func.jvp(lambda y: total(x) + y, (x.sum(),), (x.sum(),))[1], (tensor,), (tensor,))


@JIT
def test_what_is_detached_may_be_scored_inside_a_derivative() -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM, "full")

    def loss(weights: torch.Tensor) -> torch.Tensor:
        chosen = fp8_mqa_logits(*call._replace(weights=weights.detach())) > 0
        return weights.square().sum() + chosen.sum()

    assert torch.equal(torch.func.grad(loss)(call.weights), 2 * call.weights)
    tangent = torch.func.jvp(loss, (call.weights,), (torch.ones_like(call.weights),))[1]
    torch.testing.assert_close(tangent, 2 * call.weights.sum())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_scores_each_of_a_batch() -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM, "full")
    batch = torch.stack([call.weights, -call.weights])
    mapped = torch.vmap(lambda weights: fp8_mqa_logits(*call._replace(weights=weights)))(batch)
    assert torch.equal(mapped, torch.stack([fp8_mqa_logits(*call._replace(weights=weights)) for weights in batch]))
