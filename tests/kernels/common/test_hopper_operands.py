"""Which calls gluon_hopper takes, by their operands: what a tensor map cannot describe goes to classic, and says so."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from capgate import compat
from capgate.kernels.mqa_logits import api as dense
from capgate.kernels.mqa_logits.operands import Inputs as DenseInputs
from capgate.kernels.mqa_logits.operation import operation as dense_operation
from capgate.kernels.paged_mqa_logits import api as paged
from capgate.kernels.paged_mqa_logits.operands import Inputs as PagedInputs
from capgate.kernels.paged_mqa_logits.operation import operation as paged_operation
from capgate.kernels.sparse_logits import calls as sparse
from capgate.kernels.sparse_logits import tunings
from capgate.kernels.sparse_logits.operands import Dense
from capgate.kernels.sparse_logits.operation import dense as sparse_operation

MAPS = "needs operands that tensor maps describe: 16-byte aligned lines of adjacent elements, "


def zeros(*shape: int, stride: tuple[int, ...] | None = None, offset: int = 0, dtype: torch.dtype) -> torch.Tensor:
    """Aligned memory seen with these strides (adjacent ones otherwise), ``offset`` elements from its start."""
    stride = stride or torch.empty(shape, device="meta").stride()
    size = offset + 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True) if length)
    memory = torch.zeros(size, dtype=dtype)
    assert memory.data_ptr() % 16 == 0
    return memory.as_strided(shape, stride, offset)


def fp8(*shape: int, **where: Any) -> torch.Tensor:
    return zeros(*shape, **where, dtype=torch.float8_e4m3fn)


def floats(*shape: int, **where: Any) -> torch.Tensor:
    return zeros(*shape, **where, dtype=torch.float32)


def halves(*shape: int, **where: Any) -> torch.Tensor:
    return zeros(*shape, **where, dtype=torch.bfloat16)


def octets(*shape: int, **where: Any) -> torch.Tensor:
    return zeros(*shape, **where, dtype=torch.uint8)


def reason(operation: compat.Operation, problem: Any) -> str:
    """Why gluon_hopper does not take a problem on an H100; "" where it does."""
    caps = compat.capabilities("cuda:90")
    if not caps.gluon_hopper:
        pytest.skip(caps.why("gluon_hopper"))
    trace = operation.explain(problem._replace(device="cuda:90"))
    step = next(step for step in trace.steps if step.variant == "gluon_hopper")
    assert (trace.variant == "gluon_hopper") == step.accepted
    return "" if step.accepted else step.reason


# --- fp8_mqa_logits -------------------------------------------------------------------------------------------------------


def dense_problem(clean_logits: bool = False, compressed: bool = False, few: bool = False, **changed: torch.Tensor) -> Any:
    """Of 8 rows, 64 heads, 128 dims and 256 keys but for the operands given; taken for one of many more if not ``few``."""
    usual = {"q": fp8(8, 64, 128), "k": fp8(256, 128), "k_scale": floats(256), "weights": floats(8, 64), "out": floats(8, 256)}
    operands = {**usual, **changed}
    out, window = operands.pop("out"), torch.zeros(8, dtype=torch.int32)
    problem = dense.describe(DenseInputs(**operands, starts=window, ends=window), out, clean_logits, compressed)
    return problem if few else problem._replace(few_products=False)


def test_few_products_are_left_to_classic_by_the_dense_operation() -> None:
    many = dense_problem(few=True, k=fp8(1025, 128), k_scale=floats(1025), out=floats(8, 1025))
    few = dense_problem(few=True, k=fp8(1024, 128), k_scale=floats(1024), out=floats(8, 1024))
    assert reason(dense_operation, many) == ""
    assert "8192 rows x keys or fewer; name it" in reason(dense_operation, few)
    few = few._replace(device="cuda:90")
    assert dense_operation.explain(few).variant == "classic"
    assert dense_operation.explain(few, "gluon_hopper").variant == "gluon_hopper"


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="usual"),
        pytest.param({"q": fp8(8, 64, 128, stride=(128, 1024, 1))}, id="q: heads outside"),
        pytest.param({"q": fp8(8, 64, 128, stride=(64 * 144, 144, 1), offset=16)}, id="q: padded rows"),
        pytest.param({"q": fp8(1, 64, 128, stride=(3, 128, 1)), "weights": floats(1, 64)}, id="q: one row has no step"),
        pytest.param({"k": fp8(256, 128, stride=(144, 1), offset=16)}, id="k: padded"),
        pytest.param({"weights": floats(8, 64, stride=(68, 1), offset=4)}, id="weights: padded"),
        pytest.param({"weights": halves(8, 64)}, id="weights: bfloat16"),
        pytest.param({"weights": halves(8, 64, stride=(72, 1), offset=8)}, id="weights: bfloat16, padded"),
        pytest.param({"out": floats(8, 256, stride=(257, 1), offset=1)}, id="out: anyhow, if not cleaned"),
        pytest.param({"out": halves(8, 256, stride=(257, 1), offset=1)}, id="out: bfloat16, anyhow, if not cleaned"),
    ],
)
def test_dense_operands_that_tensor_maps_describe(changed: dict[str, torch.Tensor]) -> None:
    problem = dense_problem(**changed)
    assert problem.tensor_maps
    assert reason(dense_operation, problem) == ""


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"q": fp8(8, 64, 128, offset=8)}, id="q: address"),
        pytest.param({"q": fp8(8, 64, 128, stride=(64 * 136, 136, 1))}, id="q: step of heads"),
        pytest.param({"q": fp8(8, 64, 128, stride=(64 * 128 + 8, 128, 1))}, id="q: step of rows"),
        pytest.param({"q": fp8(8, 64, 128, stride=(64 * 256, 256, 2))}, id="q: step of elements"),
        pytest.param({"q": fp8(1, 64, 128).expand(8, 64, 128)}, id="q: one row for all"),
        pytest.param({"k": fp8(256, 128, offset=4)}, id="k: address"),
        pytest.param({"k": fp8(256, 128, stride=(132, 1))}, id="k: step"),
        pytest.param({"k": fp8(256, 128, stride=(1, 256))}, id="k: transposed"),
        pytest.param({"k": fp8(0, 128), "k_scale": floats(0), "out": floats(8, 50)}, id="k: none"),
        pytest.param({"k_scale": floats(256, offset=1)}, id="k_scale: address"),
        pytest.param({"k_scale": floats(256, stride=(2,))}, id="k_scale: step"),
        pytest.param({"weights": floats(8, 64, offset=2)}, id="weights: address"),
        pytest.param({"weights": floats(8, 64, stride=(66, 1))}, id="weights: step of rows"),
        pytest.param({"weights": floats(8, 64, stride=(1, 8))}, id="weights: transposed"),
        pytest.param({"weights": halves(8, 64, offset=4)}, id="weights: bfloat16, address"),
        pytest.param({"weights": halves(8, 64, stride=(68, 1))}, id="weights: bfloat16, step of rows"),
    ],
)
@pytest.mark.parametrize("mode", [(True, False), (False, False), (False, True)], ids=["clean", "unclean", "compressed"])
def test_dense_operands_that_no_tensor_map_describes(changed: dict[str, torch.Tensor], mode: tuple[bool, bool]) -> None:
    problem = dense_problem(*mode, **changed)
    assert not problem.tensor_maps
    assert reason(dense_operation, problem) == MAPS + "one key at least"


@pytest.mark.parametrize(
    ("out", "maps"),
    [
        pytest.param(floats(8, 256, stride=(260, 1), offset=4), True, id="aligned"),
        pytest.param(floats(8, 113, stride=(116, 1)), True, id="width that is no multiple of 4"),
        pytest.param(floats(8, 4), True, id="one line of 16 bytes"),
        pytest.param(floats(8, 256, offset=1), False, id="address"),
        pytest.param(floats(8, 113), False, id="step of rows"),
        pytest.param(floats(8, 256, stride=(1, 8)), False, id="transposed"),
        pytest.param(floats(8, 3, stride=(4, 1)), False, id="less than 16 bytes"),
        pytest.param(halves(8, 113, stride=(120, 1)), True, id="bfloat16, width that is no multiple of 8"),
        pytest.param(halves(8, 8), True, id="bfloat16, one line of 16 bytes"),
        pytest.param(halves(8, 113, stride=(116, 1)), False, id="bfloat16, step of rows"),
        pytest.param(halves(8, 7, stride=(8, 1)), False, id="bfloat16, less than 16 bytes"),
    ],
)
def test_the_copy_engine_fills_what_is_cleaned(out: torch.Tensor, maps: bool) -> None:
    """Without cleaning the output may lie anyhow: only plain stores write it."""
    keys = {"k": fp8(out.shape[1], 128), "k_scale": floats(out.shape[1]), "out": out}
    assert dense_problem(clean_logits=False, **keys).tensor_maps
    problem = dense_problem(clean_logits=True, **keys)
    assert problem.tensor_maps == maps
    assert reason(dense_operation, problem) == ("" if maps else MAPS + "one key at least")


# --- fp8_paged_mqa_logits -------------------------------------------------------------------------------------------------


def cache(block: int = 64, dim: int = 128, gap: int = 0, offset: int = 0) -> torch.Tensor:
    """Nine blocks, ``gap`` bytes between them."""
    return octets(9, block, 1, dim + 4, stride=(block * (dim + 4) + gap, dim + 4, dim + 4, 1), offset=offset)


def paged_problem(clean_logits: bool = False, **changed: torch.Tensor) -> Any:
    """Of 5 requests, 2 rows of each, 64 heads and 128 dims but for the operands given."""
    usual = {"q": fp8(5, 2, 64, 128), "kv_cache": cache(), "weights": floats(10, 64)}
    table = torch.zeros(5, 4, dtype=torch.int32)
    return paged.describe(PagedInputs(**usual | changed, context_lens=table[:, 0], block_table=table), clean_logits)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="usual"),
        pytest.param({"q": fp8(5, 2, 64, 128, stride=(256, 128, 1280, 1))}, id="q: heads outside"),
        pytest.param({"q": fp8(5, 2, 64, 128, stride=(64 * 288, 64 * 144, 144, 1), offset=16)}, id="q: padded rows"),
        pytest.param({"q": fp8(5, 1, 64, 128, stride=(10000, 7, 128, 1)), "weights": floats(5, 64)}, id="q: one row each"),
        pytest.param({"q": fp8(1, 2, 64, 128, stride=(7, 8192, 128, 1)), "weights": floats(2, 64)}, id="q: one request"),
        pytest.param({"kv_cache": cache(gap=16, offset=16)}, id="cache: blocks apart"),
        pytest.param({"kv_cache": cache(block=32)}, id="cache: blocks of 32"),
        pytest.param({"kv_cache": cache(block=128)}, id="cache: blocks of 128"),
        pytest.param({"weights": floats(10, 64, stride=(68, 1), offset=4)}, id="weights: padded"),
        pytest.param({"weights": halves(10, 64, stride=(72, 1), offset=8)}, id="weights: bfloat16, padded"),
    ],
)
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
def test_paged_operands_that_tensor_maps_describe(changed: dict[str, torch.Tensor], clean_logits: bool) -> None:
    problem = paged_problem(clean_logits, **changed)
    assert problem.tensor_maps
    assert reason(paged_operation, problem) == ""


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"q": fp8(5, 2, 64, 128, offset=8)}, id="q: address"),
        pytest.param({"q": fp8(5, 2, 64, 128, stride=(128 * 136, 64 * 136, 136, 1))}, id="q: step of heads"),
        pytest.param({"q": fp8(5, 2, 64, 128, stride=(3 * 8192, 8192, 128, 1))}, id="q: gaps between requests"),
        pytest.param({"q": fp8(5, 2, 64, 128, stride=(8192, 5 * 8192, 128, 1))}, id="q: rows outside"),
        pytest.param({"kv_cache": cache(offset=4)}, id="cache: address"),
        pytest.param({"kv_cache": cache(gap=4)}, id="cache: step of blocks"),
        pytest.param({"kv_cache": cache()[:0]}, id="cache: no block"),
        pytest.param({"weights": floats(10, 64, offset=1)}, id="weights: address"),
        pytest.param({"weights": floats(10, 64, stride=(65, 1))}, id="weights: step of rows"),
        pytest.param({"weights": halves(10, 64, stride=(68, 1))}, id="weights: bfloat16, step of rows"),
    ],
)
@pytest.mark.parametrize("clean_logits", [True, False], ids=["clean", "unclean"])
def test_paged_operands_that_no_tensor_map_describes(changed: dict[str, torch.Tensor], clean_logits: bool) -> None:
    problem = paged_problem(clean_logits, **changed)
    assert not problem.tensor_maps
    words = "requests at equal distances, blocks a multiple of 16 bytes apart"
    assert reason(paged_operation, problem) == MAPS + words


@pytest.mark.parametrize("block", [1, 16, 48])
def test_paged_blocks_whose_scales_do_not_fill_128_bytes(block: int) -> None:
    words = f"needs blocks of a multiple of 32 keys, whose scales fill 128 bytes: found {block}"
    assert reason(paged_operation, paged_problem(kv_cache=cache(block))) == words


# --- sparse_mqa_logits ----------------------------------------------------------------------------------------------------


def sparse_problem(lists: int = 1, **changed: torch.Tensor) -> Any:
    """Of 8 rows, 64 heads, 128 dims and 256 keys, one list for all rows, but for the operands given."""
    usual = {"q": fp8(8, 64, 128), "k": fp8(256, 128), "k_scale": floats(256), "weights": floats(8, 64)}
    window, candidates = torch.zeros(8, dtype=torch.int32), torch.zeros(lists, 5, dtype=torch.int32)
    inputs = Dense(**usual | changed, starts=window, ends=window, candidates=candidates)
    return sparse.describe(inputs, torch.float32, 8, False, False)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({}, id="usual"),
        pytest.param({"k": fp8(256, 128, stride=(144, 1), offset=16)}, id="k: padded"),
        pytest.param({"k_scale": floats(256, stride=(3,), offset=1)}, id="k_scale: anyhow"),
        pytest.param({"weights": halves(8, 64, stride=(72, 1), offset=8)}, id="weights: bfloat16, padded"),
    ],
)
def test_sparse_operands_that_tensor_maps_describe(changed: dict[str, torch.Tensor]) -> None:
    assert reason(sparse_operation, sparse_problem(**changed)) == ""


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"q": fp8(8, 64, 128, offset=8)}, id="q: address"),
        pytest.param({"k": fp8(256, 128, stride=(132, 1))}, id="k: step"),
        pytest.param({"k": fp8(0, 128), "k_scale": floats(0)}, id="k: none"),
        pytest.param({"weights": floats(8, 64, stride=(66, 1))}, id="weights: step of rows"),
    ],
)
def test_sparse_operands_that_no_tensor_map_describes(changed: dict[str, torch.Tensor]) -> None:
    assert reason(sparse_operation, sparse_problem(**changed)) == MAPS + "one key at least"


def test_lists_of_one_row_each() -> None:
    words = "needs rows that share lists, whose keys it gathers once for several: found a list for each"
    assert reason(sparse_operation, sparse_problem(lists=8)) == words


@pytest.mark.parametrize(("heads", "rows"), [(16, 8), (32, 8), (64, 4), (128, 2)])
def test_lists_of_fewer_rows_than_a_group_are_left_to_classic(heads: int, rows: int) -> None:
    operands = {"q": fp8(8, heads, 128), "weights": floats(8, heads)}
    whole = sparse_problem(lists=8 // rows, **operands)._replace(device="cuda:90")
    assert reason(sparse_operation, whole) == ""
    assert tunings.gluon_hopper(whole).rows == rows
    for fewer in range(1, rows.bit_length() - 1):
        few = whole._replace(list_rows=1 << fewer)
        words = f"groups of {rows} rows that share a list, and leaves lists of fewer to classic: found {1 << fewer} rows"
        assert words in reason(sparse_operation, few)
        assert sparse_operation.explain(few).variant == "classic"
        assert sparse_operation.explain(few, "gluon_hopper").variant == "gluon_hopper"


# --- all ------------------------------------------------------------------------------------------------------------------


def all_of(heads: int, dtype: torch.dtype) -> list[tuple[compat.Operation, Any]]:
    q, k, weights = fp8(8, heads, 128).view(dtype), fp8(256, 128).view(dtype), floats(8, heads, stride=(128, 1))
    problems: list[tuple[compat.Operation, Callable[..., Any], dict[str, torch.Tensor]]] = [
        (dense_operation, dense_problem, {"q": q, "k": k, "weights": weights}),
        (paged_operation, paged_problem, {"q": q.unflatten(0, (4, 2)), "weights": weights}),
        (sparse_operation, sparse_problem, {"q": q, "k": k, "weights": weights}),
    ]
    return [(operation, make(**operands)) for operation, make, operands in problems]


@pytest.mark.parametrize("heads", [1, 63, 66, 127])
def test_heads_that_are_no_multiple_of_4(heads: int) -> None:
    for operation, problem in all_of(heads, torch.float8_e4m3fn):
        assert reason(operation, problem) == f"needs a multiple of 4 heads: found {heads}"


@pytest.mark.parametrize("heads", [4, 12, 100, 128])
def test_heads_that_are_a_multiple_of_4(heads: int) -> None:
    for operation, problem in all_of(heads, torch.float8_e4m3fn):
        assert problem.tensor_maps
        assert reason(operation, problem) == ""


def test_the_other_fp8_format() -> None:
    for operation, problem in all_of(64, torch.float8_e4m3fnuz):
        assert reason(operation, problem) == compat.capabilities("cuda:90").why("fp8_e4m3fnuz")
