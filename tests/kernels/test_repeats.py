"""Functions whose calls repeat hand every argument on to what tells the calls apart."""

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.any_triton

KERNELS = Path(__file__).parents[2] / "kernels"


def functions() -> list[tuple[Path, ast.FunctionDef, ast.Call]]:
    """The functions that look at a call of theirs, and where they do."""
    return [
        (file, function, call)
        for file in sorted(KERNELS.rglob("*.py"))
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("REPEATS.call")
    ]


@pytest.mark.parametrize(("file", "function", "call"), functions(), ids=lambda value: getattr(value, "name", ""))
def test_every_argument_tells_calls_apart(file: Path, function: ast.FunctionDef, call: ast.Call) -> None:
    arguments = function.args
    parameters = {argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    told = {node.id for value in call.args for node in ast.walk(value) if isinstance(node, ast.Name)}
    before = function.body[: next(i for i, step in enumerate(function.body) if call in ast.walk(step))]
    made = {  # names that were assigned from arguments before: those are told by them
        target.id: {node.id for node in ast.walk(step.value) if isinstance(node, ast.Name)}
        for step in before
        if isinstance(step, ast.Assign)
        for target in step.targets
        if isinstance(target, ast.Name)
    }
    for name in list(told):
        told |= made.get(name, set())
    elsewhere = [step for step in before if isinstance(step, ast.If) and isinstance(step.body[-1], ast.Return)]
    steps = [step for step in function.body if step not in elsewhere]  # of the calls that come so far
    used = {node.id for step in steps for node in ast.walk(step) if isinstance(node, ast.Name)}
    assert parameters & used <= told, f"{file}: {function.name}"


def test_there_are_such_functions() -> None:
    assert {function.name for _, function, _ in functions()} >= {"fp8_mqa_logits", "fp8_paged_mqa_logits"}
