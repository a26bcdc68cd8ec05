"""The Python examples of the pages for users run as they stand, on CPU tensors."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def examples(page: str) -> list[str]:
    """A page's Python blocks."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def example(page: str, beginning: str) -> str:
    """The block of a page that contains ``beginning``."""
    return next(block for block in examples(page) if beginning in block)


def prefill() -> dict[str, Any]:
    """Names of the operands of ``fp8_mqa_logits``: two rows that see all of three keys, each logit 128."""
    return {
        "q": torch.ones(2, 4, 32).to(torch.float8_e4m3fn),
        "k": torch.ones(3, 32).to(torch.float8_e4m3fn),
        "k_scale": torch.ones(3),
        "weights": torch.ones(2, 4),
        "starts": torch.zeros(2, dtype=torch.int32),
        "ends": torch.full((2,), 3, dtype=torch.int32),
    }


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_examples_are_python(page: Path) -> None:
    for block in examples(str(page.relative_to(ROOT))):
        if not block.startswith("# in "):  # an edit: a piece of a file
            ast.parse(block)


GATED = """
x, factor = torch.ones(2, 100), torch.tensor([2.0, 3.0])
assert torch.equal(scale(x, factor), torch.tensor([[2.0], [3.0]]).expand(2, 100))
trace = scale_rows.explain(Problem("hip:gfx942", 100))
assert [step.accepted for step in trace.steps] == [False, True, True]
"""


def test_the_gating_example_chooses_the_torch_variant_on_the_cpu(newcomer: Any) -> None:
    """In a process of its own, as it defines an operation, whose name would be taken for all tests after it."""
    newcomer.run("python", "-c", example("README.md", 'Operation("scale_rows")') + GATED)


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_logits_example_runs(page: str) -> None:
    names = prefill()
    exec(example(page, "fp8_mqa_logits("), names)
    assert torch.equal(names["logits"], torch.full((2, 3), 128.0))


def test_the_selection_example_runs() -> None:
    names = prefill()
    exec(example("docs/operations.md", "select_keys("), names)
    assert names["indices"].shape == (2, 2048)
    assert names["indices"][:, :4].tolist() == [[0, 1, 2, -1]] * 2


def test_the_decode_examples_run() -> None:
    names: dict[str, Any] = {
        "k": torch.ones(20, 32).bfloat16(),
        "kv_cache": torch.zeros(2, 16, 1, 36, dtype=torch.uint8),
        "slot_mapping": torch.arange(20),
        "q": torch.ones(1, 2, 4, 32).bfloat16(),
        "weights": torch.ones(1, 2, 4),
        "context_lens": torch.tensor([20], dtype=torch.int32),
        "block_table": torch.tensor([[0, 1]], dtype=torch.int32),
        "block_size": 16,
    }
    exec(example("docs/operations.md", "quantize_keys_to_cache("), names)
    logits = names.pop("logits")
    exec(example("docs/operations.md", "paged_mqa_schedule("), names)
    assert logits.shape == (2, 131072)
    assert torch.equal(logits[:, :19], names["logits"][:, :19])
    # 4 heads of weight 1 / (sqrt(32) * sqrt(4)), each a product of 32.
    torch.testing.assert_close(logits[:, :19], torch.full((2, 19), 4 * 32 / (32**0.5 * 2)), rtol=0.01, atol=0)


def test_the_example_of_mx_formats_runs() -> None:
    names: dict[str, Any] = {
        "k": torch.full((20, 128), 3.0).bfloat16(),
        "kv_cache": torch.zeros(2, 32, 1, 68, dtype=torch.uint8),
        "slot_mapping": torch.arange(20),
        "block_table": torch.tensor([[0, 1]], dtype=torch.int32),
        "lens": torch.tensor([20], dtype=torch.int32),
        "total": 20,
        "q": torch.ones(5, 4, 128),
        "weights": torch.ones(5, 4),
    }
    exec(example("docs/key-formats.md", "quantize_keys_to_cache("), names)
    assert torch.equal(names["values"], torch.full((20, 128), 3.0))
    assert names["q_scales"].shape == (5, 4)


def test_the_flags_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    from capgate import compat

    names: dict[str, Any] = {}
    exec(example("README.md", "compat.capabilities()").replace("compat.require", "# compat.require"), names)
    assert isinstance(names["caps"], compat.Capabilities)
    names = {}
    for block in examples("docs/gating.md"):
        exec(block, names)
    assert "disabled by override(disable=['gluon'])" in capsys.readouterr().out


def test_the_drop_ins_of_the_examples_are_there() -> None:
    """Installing one needs the library; tests/kernels does it with libraries that are made up."""
    from capgate.kernels import dropin

    for page in ("README.md", "docs/engines/README.md"):
        named = set(re.findall(r'"(\w+)"', example(page, "dropin.install")))
        assert named == set(dropin.DROPINS)
