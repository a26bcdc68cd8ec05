"""MQA logits in MX formats compiled for GPUs that are not here: no spills, and the matrix instructions that they have."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate import compat
from capgate.compat.offline.jobs import Job
from support.wait_states import check_wait_states

# The matrix instruction where tl.dot_scaled becomes a block-scaled one, and elsewhere.
TARGETS = {
    "cuda:90": ("", "HGMMA.64x"),
    "hip:gfx942": ("", "v_mfma_f32_32x32x8_bf16"),
    "hip:gfx950": ("v_mfma_scale_f32_32x32x64_f8f6f4", "v_mfma_f32_32x32x16_bf16"),
    "cuda:100": ("UTCOMMA", "UTCHMMA"),
}


# The products for gfx942 are executed in every lane, by tests/gfx950/test_mx_logits.py; paged ones are those of the first case.
CASES = [
    ("mx_mqa_logits", "cuda:90"),
    ("mx_mqa_logits", "cuda:100"),
    pytest.param("mx_mqa_logits", "hip:gfx942", marks=pytest.mark.one_lane),
    pytest.param("mx_paged_mqa_logits", "cuda:90", marks=pytest.mark.one_lane),
    ("mx_sparse_mqa_logits", "cuda:90"),
    ("mx_paged_sparse_mqa_logits", "hip:gfx950"),
]


@pytest.mark.parametrize(("operation", "target"), CASES)
def test_compiles_without_spills_to_the_targets_matrix_instruction(
    compile_once: Callable[..., Any], operation: str, target: str
) -> None:
    caps = compat.capabilities(target)
    (row,) = compile_once(operation, target, [Job("classic", 64, 128, "mxfp4-clean")])
    assert row["compiled"], row["error"]
    assert row["spills"] == row["scratch_bytes"] == 0
    wanted = TARGETS[target][0 if caps.block_scaled_dot else 1]
    assert row["matrix_instructions"]
    assert all(name.startswith(wanted) for name in row["matrix_instructions"]), row["matrix_instructions"]
    if target.startswith("hip:gfx9"):
        check_wait_states(row)


def test_tiles_of_128_heads_fit_on_sm120(compile_once: Callable[..., Any]) -> None:
    """Where all columns of a tile are filled, fewer keys: of 64 and more some hundred registers spilled with Triton 3.5.1."""
    jobs = [Job("classic", 128, 128, mode) for mode in ("mxfp4-clean", "mxfp8-clean")]
    for row in compile_once("mx_paged_mqa_logits", "cuda:120", jobs):
        assert row["compiled"], row["error"]
        assert row["spills"] == row["scratch_bytes"] == 0
