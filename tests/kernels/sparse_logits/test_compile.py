"""The sparse kernels, and those of candidate blocks, compiled for GPUs that are not here, by this lane's Triton."""

from collections.abc import Callable
from typing import Any

import pytest

from capgate.compat.offline.jobs import Job

# Target: its shared memory, and a part of its fp8 matrix instructions' names.
TARGETS = {"cuda:90": (227 * 1024, "QGMMA"), "hip:gfx950": (160 * 1024, "f8f6f4"), "hip:gfx942": (64 * 1024, "fp8_fp8")}


CASES = [
    ("sparse_mqa_logits", "shared", "cuda:90"),
    ("paged_sparse_mqa_logits", "unclean", "cuda:90"),
    ("paged_sparse_mqa_logits", "unclean", "hip:gfx950"),
    *(
        pytest.param(*case, marks=pytest.mark.one_lane)
        for case in (
            ("sparse_mqa_logits", "shared", "hip:gfx950"),
            ("sparse_mqa_logits", "shared", "hip:gfx942"),
            ("paged_sparse_mqa_logits", "unclean", "hip:gfx942"),
        )
    ),
]


@pytest.mark.parametrize(("operation", "mode", "target"), CASES)
def test_classic_fits_without_spills(compile_once: Callable[..., Any], target: str, operation: str, mode: str) -> None:
    shared_memory, instruction = TARGETS[target]
    (row,) = compile_once(operation, target, [Job("classic", 32, 128, mode)])
    assert row["compiled"], row["error"]
    assert 0 < row["lds_bytes"] <= shared_memory
    assert (row["spills"], row["scratch_bytes"]) == (0, 0)
    assert row["matrix_instructions"]
    assert all(instruction in name for name in row["matrix_instructions"])


@pytest.mark.one_lane
@pytest.mark.parametrize("target", TARGETS)
def test_candidate_blocks_fit_without_spills(compile_once: Callable[..., Any], target: str) -> None:
    for operation, mode in (("select_candidate_blocks", "select"), ("apply_candidate_mask", "mask")):
        for row in compile_once(operation, target, [Job("classic", mode=mode)]):
            assert row["compiled"], row["error"]
            assert (row["spills"], row["scratch_bytes"]) == (0, 0), operation
