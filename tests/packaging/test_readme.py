"""The README's Python examples run as they stand."""

import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

README = (Path(__file__).parents[2] / "README.md").read_text()


def example(beginning: str) -> str:
    """The README's Python block that contains ``beginning``."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if beginning in block)


def test_the_gating_example_chooses_the_torch_variant_on_the_cpu():
    names: dict = {"__name__": "readme_example"}
    exec(example('Operation("scale_rows")'), names)
    x, factor = torch.ones(2, 100), torch.tensor([2.0, 3.0])
    assert torch.equal(names["scale"](x, factor), torch.tensor([[2.0], [3.0]]).expand(2, 100))
    trace = names["scale_rows"].explain(names["Problem"]("hip:gfx942", 100))
    assert [step.accepted for step in trace.steps] == [False, True, True]


def test_the_logits_example_runs():
    names = {
        "q": torch.ones(2, 4, 32).to(torch.float8_e4m3fn),
        "k": torch.ones(3, 32).to(torch.float8_e4m3fn),
        "k_scale": torch.ones(3),
        "weights": torch.ones(2, 4),
        "starts": torch.zeros(2, dtype=torch.int32),
        "ends": torch.full((2,), 3, dtype=torch.int32),
    }
    exec(example("fp8_mqa_logits("), names)
    assert torch.equal(names["logits"], torch.full((2, 3), 128.0))


def test_the_flags_example_runs():
    from capgate import compat

    names: dict = {}
    block = example("compat.capabilities()").replace("compat.require", "# compat.require")
    exec(block, names)
    assert isinstance(names["caps"], compat.Capabilities)
