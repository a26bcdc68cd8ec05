"""Bad input: the right error, it names the argument, and nothing has been written."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels import fp8_mqa_logits

ROWS, KEYS, HEADS, DIM = 3, 5, 16, 32
FN, FNUZ, INT = torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.int32


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


# What replaces good arguments, the error, and the argument that it names.
BAD: dict[str, tuple[dict[str, Callable[[], Any]], type[Exception], str]] = {
    "q-list": ({"q": lambda: [1.0]}, TypeError, "q"),
    "q-two-dimensional": ({"q": lambda: zeros(ROWS, DIM, dtype=FN)}, ValueError, "q"),
    "q-no-heads": ({"q": lambda: zeros(ROWS, 0, DIM, dtype=FN)}, ValueError, "q"),
    "q-too-many-heads": ({"q": lambda: zeros(ROWS, 129, DIM, dtype=FN)}, ValueError, "q"),
    "q-dim-48": ({"q": lambda: zeros(ROWS, HEADS, 48, dtype=FN)}, ValueError, "q"),
    "q-bfloat16": ({"q": lambda: zeros(ROWS, HEADS, DIM, dtype=torch.bfloat16)}, TypeError, "q"),
    "q-e5m2": ({"q": lambda: zeros(ROWS, HEADS, DIM, dtype=torch.float8_e5m2)}, TypeError, "q"),
    "k-none": ({"k": lambda: None}, TypeError, "k"),
    "k-three-dimensional": ({"k": lambda: zeros(KEYS, 1, DIM, dtype=FN)}, ValueError, "k"),
    "k-other-dim": ({"k": lambda: zeros(KEYS, 64, dtype=FN)}, ValueError, "k"),
    "k-other-fp8": ({"k": lambda: zeros(KEYS, DIM, dtype=FNUZ)}, TypeError, "k"),
    "k-bytes": ({"k": lambda: zeros(KEYS, DIM, dtype=torch.uint8)}, TypeError, "k"),
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
    "weights-requires-grad": ({"weights": lambda: zeros(ROWS, HEADS).requires_grad_()}, ValueError, "weights"),
    "starts-list": ({"starts": lambda: [0] * ROWS}, TypeError, "starts"),
    "starts-long": ({"starts": lambda: zeros(ROWS + 1, dtype=INT)}, ValueError, "starts"),
    "starts-int64": ({"starts": lambda: zeros(ROWS, dtype=torch.int64)}, TypeError, "starts"),
    "starts-other-device": ({"starts": lambda: zeros(ROWS, dtype=INT, device="meta")}, ValueError, "starts"),
    "ends-none": ({"ends": lambda: None}, TypeError, "ends"),
    "ends-column": ({"ends": lambda: zeros(ROWS, 1, dtype=INT)}, ValueError, "ends"),
    "ends-float": ({"ends": lambda: zeros(ROWS)}, TypeError, "ends"),
    "ends-other-device": ({"ends": lambda: zeros(ROWS, dtype=INT, device="meta")}, ValueError, "ends"),
    "clean_logits-with-max_window": ({"max_window": lambda: 4}, ValueError, "clean_logits"),
    "clean_logits-text": ({"clean_logits": lambda: "no"}, TypeError, "clean_logits"),
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
    "out-bfloat16": ({"out": lambda: zeros(ROWS, KEYS, dtype=torch.bfloat16)}, TypeError, "out"),
    "out-other-device": ({"out": lambda: zeros(ROWS, KEYS, device="meta")}, ValueError, "out"),
    "out-requires-grad": ({"out": lambda: zeros(ROWS, KEYS).requires_grad_()}, ValueError, "out"),
    "out-rows-expanded": ({"out": lambda: zeros(1, KEYS).expand(ROWS, KEYS)}, ValueError, "out"),
    "out-columns-expanded": ({"out": lambda: zeros(ROWS, 1).expand(ROWS, KEYS)}, ValueError, "out"),
    "out-rows-overlap": ({"out": lambda: zeros(99).as_strided((ROWS, KEYS), (KEYS - 1, 1))}, ValueError, "out"),
    "out-columns-overlap": ({"out": lambda: zeros(99).as_strided((ROWS, KEYS), (1, ROWS - 1))}, ValueError, "out"),
    "variant-unknown": ({"variant": lambda: "clasic"}, ValueError, "variant"),
    "variant-number": ({"variant": lambda: 3}, TypeError, "variant"),
}


def storage_bytes(value: Any) -> torch.Tensor | None:
    if not isinstance(value, torch.Tensor) or value.device.type == "meta":
        return None
    return torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage()).clone()


@pytest.mark.parametrize(("replacements", "error", "argument"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_by_name_and_changes_nothing(
    judge: ModuleType, replacements: dict[str, Callable[[], Any]], error: type[Exception], argument: str
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
def test_every_operand_is_required(judge: ModuleType, position: int) -> None:
    call = judge.make_call(ROWS, KEYS, HEADS, DIM)
    with pytest.raises(TypeError, match=f"'{call._fields[position]}'"):
        fp8_mqa_logits(**{name: tensor for name, tensor in call._asdict().items() if name != call._fields[position]})


@pytest.mark.parametrize("rows", [0, ROWS])
def test_an_impossible_branch_is_refused_with_its_reason(judge: ModuleType, rows: int) -> None:
    call, out = judge.make_call(rows, KEYS, HEADS, DIM), judge.sentinels(rows, KEYS)
    before = storage_bytes(out)
    refused = pytest.raises(compat.CapabilityError, match=r"fp8_mqa_logits cannot run variant 'classic': .*disabled by")
    with compat.override(disable=["triton"]), refused:
        fp8_mqa_logits(*call, out=out, variant="classic")
    assert torch.equal(storage_bytes(out), before)


def test_a_switch_to_an_impossible_branch_is_refused_too(judge: ModuleType) -> None:
    with (
        compat.override(disable=["triton"], variant="fp8_mqa_logits=classic"),
        pytest.raises(compat.CapabilityError, match="variant 'classic'"),
    ):
        fp8_mqa_logits(*judge.make_call(ROWS, KEYS, HEADS, DIM))


@pytest.mark.parametrize("name", ["k_scale", "weights", "out"])
def test_tensors_that_require_grad_serve_where_grad_is_off(judge: ModuleType, branch: str, name: str) -> None:
    arguments = judge.make_call(ROWS, KEYS, HEADS, DIM)._asdict() | {"out": torch.empty(ROWS, KEYS)}
    expected = fp8_mqa_logits(**arguments, variant=branch).clone()
    arguments[name] = arguments[name].clone().requires_grad_()
    with torch.no_grad():
        logits = fp8_mqa_logits(**arguments, variant=branch)
    assert torch.equal(logits, expected)
    assert logits.grad_fn is None


def test_shapes_of_one_row_or_column_may_have_any_strides(judge: ModuleType, branch: str) -> None:
    """Strides along dimensions of size 1 mean nothing, so they overlap nothing."""
    call = judge.make_call(1, KEYS, HEADS, DIM, "full")
    judge.check(call, branch, out=judge.sentinels(1, KEYS).as_strided((1, KEYS), (0, 1)))
    one_key = judge.make_call(ROWS, 1, HEADS, DIM, "full")
    judge.check(one_key, branch, out=judge.sentinels(ROWS, 1).as_strided((ROWS, 1), (2, 0)))
