"""The tables of operands: what they refuse, and that signatures, docstrings, operators and pages say what they do."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from capgate import kernels
from capgate.kernels.candidate_blocks.operands import MASKED, SCORED
from capgate.kernels.common.operands import Operands
from capgate.kernels.common.schedule.operands import OPERANDS as SCHEDULE
from capgate.kernels.key_cache.operands import GATHERED, WRITTEN
from capgate.kernels.key_selection.operands import DENSE as SELECTION_DENSE
from capgate.kernels.key_selection.operands import OPERANDS as SELECTION
from capgate.kernels.key_selection.operands import PAGED as SELECTION_PAGED
from capgate.kernels.mqa_logits.operands import OPERANDS as DENSE
from capgate.kernels.mx_logits.operands import OPERANDS as MX_DENSE
from capgate.kernels.mx_paged_logits.operands import OPERANDS as MX_PAGED
from capgate.kernels.mx_paged_logits.operands import SHAPED as MX_SHAPED
from capgate.kernels.paged_mqa_logits.operands import OPERANDS as PAGED
from capgate.kernels.paged_mqa_logits.operands import SHAPED
from capgate.kernels.sparse_logits.operands import DENSE as SPARSE_DENSE
from capgate.kernels.sparse_logits.operands import MX_DENSE as SPARSE_MX_DENSE
from capgate.kernels.sparse_logits.operands import MX_PAGED as SPARSE_MX_PAGED
from capgate.kernels.sparse_logits.operands import MX_QUERIED, QUERIED, SHARED
from capgate.kernels.sparse_logits.operands import PAGED as SPARSE_PAGED
from support.operands import bad, either, good, head, limits

pytestmark = pytest.mark.any_triton


class Function(NamedTuple):
    """A public function's table, the other arguments of a good call, and operands of the table that it does not take."""

    operands: Operands[Any]
    others: dict[str, Any]
    without: tuple[str, ...] = ()
    goes_with: tuple[tuple[str, str], ...] = ()  # operands that have no use without another one


FUNCTIONS = {
    "fp8_mqa_logits": Function(DENSE, {}),
    "mx_mqa_logits": Function(MX_DENSE, {}),
    "mx_paged_mqa_logits": Function(MX_PAGED, {"max_context_len": 70}),
    "mx_paged_mqa_workers": Function(MX_SHAPED, {}),
    "fp8_paged_mqa_logits": Function(PAGED, {"max_context_len": 70}),
    "paged_mqa_schedule": Function(SCHEDULE, {"block_size": 64, "num_workers": 4}, without=("starts",)),
    "paged_mqa_workers": Function(SHAPED, {}),
    "select_keys": Function(SELECTION_DENSE, {"top_k": 2}, goes_with=(("requests", "page_table"),)),
    "select_paged_keys": Function(
        SELECTION_PAGED, {"max_context_len": 70, "top_k": 2}, goes_with=(("requests", "page_table"),)
    ),
    "select_from_logits": Function(SELECTION, {"top_k": 2}, goes_with=(("requests", "page_table"),)),
    "sparse_mqa_logits": Function(SPARSE_DENSE, {}),
    "paged_sparse_mqa_logits": Function(SPARSE_PAGED, {}),
    "mx_sparse_mqa_logits": Function(SPARSE_MX_DENSE, {}),
    "mx_paged_sparse_mqa_logits": Function(SPARSE_MX_PAGED, {}),
    "mx_sparse_mqa_workers": Function(MX_QUERIED, {}),
    "sparse_mqa_schedule": Function(SHARED, {"num_workers": 4, "most_keys": 16}),
    "sparse_mqa_workers": Function(QUERIED, {}),
    "select_candidate_blocks": Function(SCORED, {"top_blocks": 2}),
    "apply_candidate_mask": Function(MASKED, {}),
    "quantize_keys_to_cache": Function(WRITTEN, {}),
    "gather_keys": Function(GATHERED, {"total": 5}),
}
NAMES = pytest.mark.parametrize("name", FUNCTIONS)


def public(name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(kernels, name)
    return function


def taken(name: str) -> list[str]:
    function = FUNCTIONS[name]
    return [operand for operand in function.operands.rows if operand not in function.without]


@NAMES
def test_a_call_as_declared_is_fine(name: str) -> None:
    function = FUNCTIONS[name]
    tensors = {operand: tensor for operand, tensor in good(function.operands).items() if operand in taken(name)}
    public(name)(**tensors, **function.others)
    left_out = {operand: None for operand in function.operands.optional if operand in tensors}
    public(name)(**tensors | left_out, **function.others)


@pytest.mark.parametrize(("name", "operand"), [(name, operand) for name in FUNCTIONS for operand in taken(name)])
def test_every_bad_operand_is_refused_by_name_and_nothing_is_written(name: str, operand: str) -> None:
    operands, others, without, _ = FUNCTIONS[name]
    tensors = {given: tensor for given, tensor in good(operands).items() if given not in without}
    written = [tensor for given, tensor in tensors.items() if operands.rows[given].written and given != operand]
    if "out" in inspect.signature(public(name)).parameters and name in ("fp8_mqa_logits", "mx_mqa_logits"):
        written.append(torch.full((3, 5), 7.0))
        others = {**others, "out": written[-1]}
    before = [tensor.clone() for tensor in written]
    kinds = list(bad(operands, operand))
    assert len(kinds) > 8
    for kind in kinds:
        if kind.kind == "requires grad" and name.endswith("_mqa_workers"):
            continue  # of which nothing is read
        with pytest.raises(kind.error) as raised:
            public(name)(**tensors | {operand: kind.value}, **others)
        assert str(raised.value).startswith(kind.words), f"{kind.kind}: {raised.value}"
        assert all(torch.equal(one, other) for one, other in zip(written, before, strict=True)), kind.kind


@NAMES
def test_every_operand_is_required_but_for_those_that_may_be_left_out(name: str) -> None:
    function = FUNCTIONS[name]
    tensors = {operand: tensor for operand, tensor in good(function.operands).items() if operand in taken(name)}
    for operand in taken(name):
        useless = {other for other, needed in function.goes_with if needed == operand}
        fewer = {other: tensor for other, tensor in tensors.items() if other != operand and other not in useless}
        if operand in function.operands.inputs._field_defaults:
            public(name)(**fewer, **function.others)
        else:
            with pytest.raises(TypeError, match=f"'{operand}'"):
                public(name)(**fewer, **function.others)


def test_every_public_function_of_tensors_has_its_table() -> None:
    assert set(FUNCTIONS) <= set(kernels.__all__)
    for name in kernels.__all__:
        value = getattr(kernels, name)
        assert name in FUNCTIONS or not inspect.isfunction(value) or name.removeprefix("de").startswith("quantize_"), name


@NAMES
def test_a_signature_has_the_table_s_operands_first(name: str) -> None:
    operands = FUNCTIONS[name].operands
    parameters = inspect.signature(public(name)).parameters
    defaults = operands.inputs._field_defaults
    by_position = [operand for operand in taken(name) if operand not in defaults]
    assert list(parameters)[: len(by_position)] == by_position
    for operand in taken(name):
        optional = operand in operands.optional
        assert parameters[operand].annotation == (torch.Tensor | None if optional else torch.Tensor)
        assert parameters[operand].default is (None if operand in defaults else inspect.Parameter.empty)


@NAMES
def test_a_docstring_says_what_the_table_does(name: str) -> None:
    text = inspect.getdoc(public(name))
    assert text is not None
    heads = {
        operand: words
        for names, words in re.findall(r"^([\w, ]+) : (.*)$", text, re.MULTILINE)
        for operand in names.split(", ")
    }
    operands, flowing = FUNCTIONS[name].operands, " ".join(text.split())
    for operand in taken(name):
        assert heads[operand] == head(operands, operand), operand
        for words in limits(operands.rows[operand]):
            assert words in flowing, f"{operand}: {words}"


@pytest.mark.parametrize("name", ["fp8_mqa_logits", "fp8_paged_mqa_logits", "mx_mqa_logits", "mx_paged_mqa_logits"])
def test_the_page_s_table_says_what_the_table_does(name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    rows = [
        (re.findall(r"`(\w+)`", cells[0]), cells[1], cells[2])
        for line in page.splitlines()
        if len(cells := line.strip("| ").split(" | ")) == 3
    ]
    for operand, row in FUNCTIONS[name].operands.rows.items():
        shapes = either([f"[{', '.join(map(str, dims))}]" for dims in row.shapes])
        dtypes = either([str(dtype).removeprefix("torch.") for dtype in row.dtypes]) if row.dtypes else "as `q`"
        sizes = [words.replace(" is ", " ") for words in limits(row)]
        found = [line for line in rows if operand in line[0] and line[1].startswith(shapes) and line[2] == dtypes]
        assert any(all(words in line[1] for words in sizes) for line in found), (operand, shapes, sizes, dtypes)
