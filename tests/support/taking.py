"""Tests of every variant skip where one does not take what they ask, and say why."""

from typing import Any

import pytest

from capgate import compat


def taken(operation: compat.Operation[Any], problem: Any, variant: str) -> str:
    """``variant``, if it takes the problem; otherwise the test skips with its reason."""
    if variant not in operation.variants:
        pytest.skip(f"{operation.name} has no variant {variant}")
    trace = operation.explain(problem, variant=variant)
    if trace.variant is None:
        pytest.skip(next(f"{step.variant}: {step.reason}" for step in trace.steps if step.variant == variant))
    return variant
