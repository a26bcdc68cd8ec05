"""DeepGEMM's functions with what engines pass on an sm100: scaled queries and keys, and the functions of listed blocks."""

from typing import Any

import pytest
import torch

from capgate.kernels.dropin import deep_gemm
from capgate.kernels.sparse_logits import reference
from capgate.kernels.sparse_logits.operands import MxDense
from support import judge, mx_logits, mx_paged, sparse

pytestmark = pytest.mark.any_triton
FORMATS = ["mxfp4", "mxfp8"]
SM100 = 3e-5  # of calc_diff: DeepGEMM's own tests with sums in bfloat16
INT32_MAX = 2**31 - 1


def theirs(values: torch.Tensor) -> torch.Tensor:
    """As DeepGEMM takes values: FP4 is int8."""
    return values.view(torch.int8) if values.dtype == torch.uint8 else values


def rows_of_memory(logits: torch.Tensor) -> int:
    return logits.untyped_storage().nbytes() // logits.itemsize // logits.stride(0)


def of_bfloat16(exact: torch.Tensor, logits: torch.Tensor, cells: torch.Tensor) -> bool:
    """Whether logits are the float32 ones, rounded once."""
    return logits.dtype == torch.bfloat16 and torch.equal(logits[cells], exact[cells].bfloat16())


# --- all keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_dense_logits(name: str) -> None:
    """In float32 with float32 weights as on an sm120, and with bfloat16 ones in bfloat16, in longer rows."""
    call = mx_logits.make_call(9, 70, 32, 128, (name, name))
    answer = judge.formula(mx_logits.meaning(call), 31)
    q, kv, windows = (theirs(call.q), call.q_scale), (theirs(call.k), call.k_scale), (call.starts, call.ends)
    exact = deep_gemm.fp8_fp4_mqa_logits(q, kv, call.weights, *windows, 31)
    assert (exact.dtype, exact.shape, exact.stride(), rows_of_memory(exact)) == (torch.float32, (9, 31), (256, 1), 12)
    judge.agree(exact[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    weights = call.weights.bfloat16()
    whole = call._replace(weights=weights.float())
    exact = deep_gemm.fp8_fp4_mqa_logits(q, kv, whole.weights, *windows, 400)
    inside = judge.formula(mx_logits.meaning(whole), 400).inside
    for columns, step in ((400, 1024), (384, 512)):  # 384 keys at a time, and 1024 bytes
        logits = deep_gemm.fp8_fp4_mqa_logits(q, kv, weights, *windows, columns)
        assert (logits.shape, logits.stride(), rows_of_memory(logits)) == ((9, columns), (step, 1), 12)
        assert of_bfloat16(exact[:, :columns], logits, inside[:, :columns])
    options = {"clean_logits": True, "logits_dtype": torch.bfloat16}
    logits = deep_gemm.before_2_8.fp8_fp4_mqa_logits(q, kv, weights, *windows, **options)
    answer = judge.formula(mx_logits.meaning(whole))
    assert torch.equal(logits.isneginf(), ~answer.inside)
    assert logits.stride() == (512, 1)
    assert judge.calc_diff(logits[answer.inside], answer.logits[answer.inside]) < SM100


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("next_n", [1, 2])
def test_paged_logits(name: str, next_n: int) -> None:
    call = mx_paged.make_call([70, 0, 300], next_n, 32, 128, pair=(name, name), gap=12, rows=next_n > 1)
    schedule = deep_gemm.get_paged_mqa_logits_metadata(call.context_lens, 64, 5)
    answer = mx_paged.formula(call, 320)
    q, others = (theirs(call.q), call.q_scale), (call.context_lens, call.block_table, schedule, 320)
    indices = torch.arange(3, dtype=torch.int32) if next_n == 1 else None
    exact = deep_gemm.fp8_fp4_paged_mqa_logits(q, call.kv_cache, call.weights, *others, indices=indices)
    assert (exact.dtype, exact.shape, exact.stride()) == (torch.float32, (3 * next_n, 320), (512, 1))
    judge.agree(exact[answer.inside], answer.logits[answer.inside], answer.magnitude[answer.inside])
    weights = call.weights.bfloat16()
    exact = deep_gemm.fp8_fp4_paged_mqa_logits(q, call.kv_cache, weights.float(), *others)
    logits = deep_gemm.fp8_fp4_paged_mqa_logits(q, call.kv_cache, weights, *others)
    assert (logits.shape, logits.stride(), rows_of_memory(logits)) == ((3 * next_n, 320), (1536, 1), 3 * next_n)
    assert of_bfloat16(exact, logits, answer.inside)
    options = {"clean_logits": True, "logits_dtype": torch.bfloat16}
    cleaned = deep_gemm.before_2_8.fp8_fp4_paged_mqa_logits(q, call.kv_cache, weights, *others, **options)
    assert cleaned.stride() == (512, 1)
    assert torch.equal(cleaned[answer.inside], logits[answer.inside])
    assert cleaned[~answer.inside].isneginf().all()


# --- listed blocks ------------------------------------------------------------------------------------------------------------


def as_engines_list(call: Any, block: int, relative: bool, pad: int | None) -> Any:
    """The call with its lists padded as vLLM pads them, with a row's last block, or as SGLang, with INT32_MAX."""
    first, counts = sparse.windows(call)
    padded = call.candidates.clone()
    for row, (start, count) in enumerate(zip(first, counts, strict=True)):
        entries = -(-count // block)
        last = int(padded[row, min(entries, padded.shape[1]) - 1]) if entries else (0 if relative else start // block)
        padded[row, entries:] = last if pad is None else pad
    return call._replace(candidates=padded)


def judged(call: Any, logits: torch.Tensor, block: int, *, relative: bool = True) -> None:
    """Against the formula, as bfloat16, in the cells that an engine looks at; and how the rows lie."""
    answer = sparse.formula(call, block, relative=relative)
    rows, columns = answer.logits.shape
    step = -(-columns // 512) * 512
    assert (logits.dtype, logits.shape, logits.stride()) == (torch.bfloat16, (rows, columns), (step, 1))
    assert rows_of_memory(logits) == rows + rows % 2
    assert torch.equal(logits.isneginf()[answer.inside], answer.logits.isneginf()[answer.inside])
    seen = answer.inside & answer.logits.isfinite()
    judge.agree(logits[seen], answer.logits[seen], answer.magnitude[seen])


@pytest.mark.parametrize(("name", "block"), [("mxfp4", 8), ("mxfp8", 16)])
@pytest.mark.parametrize("pad", [None, INT32_MAX], ids=["vllm", "sglang"])
def test_listed_blocks_of_packed_keys(name: str, block: int, pad: int | None) -> None:
    """With windows that begin within a block, of an odd number of rows, twice with the same metadata."""
    windows = [(0, 70), (17, 90), (40, 40), (3, 60), (64, 110)]
    call = sparse.make_call(windows, 5, 110, 6, block, 32, 128, relative=False, pair=(name, name))
    call = as_engines_list(call, block, False, pad)
    q, kv = (theirs(call.q), call.q_scale), (theirs(call.k), call.k_scale)
    metadata = deep_gemm.get_sparse_mqa_logits_metadata(
        call.starts, call.ends, 110, call.candidates, q[0].dtype, block, use_unaligned_ks=True
    )
    assert metadata.dtype == torch.uint8
    before = metadata.clone()
    for weights in (call.weights, call.weights.bfloat16()):
        call = call._replace(weights=weights)
        judged(call, deep_gemm.fp8_fp4_sparse_mqa_logits(q, kv, weights, metadata, 6, block, True), block, relative=False)
    assert torch.equal(metadata, before)


@pytest.mark.parametrize(("name", "block", "page"), [("mxfp4", 8, 64), ("mxfp8", 16, 128)])
@pytest.mark.parametrize("pad", [None, INT32_MAX], ids=["vllm", "sglang"])
def test_listed_blocks_of_cached_keys(name: str, block: int, page: int, pad: int | None) -> None:
    call = sparse.make_paged_call([70, 0, 133], 6, block, block_of_cache=page, heads=32, dim=128, gap=64, pair=(name, name))
    call = as_engines_list(call, block, True, pad)
    q, indices = (theirs(call.q), call.q_scale), torch.tensor([0, 1, 1], dtype=torch.int32)
    for lens in (call.context_lens, call.context_lens[:, None]):
        metadata = deep_gemm.get_paged_sparse_mqa_logits_metadata(
            lens, call.block_table, indices, page, call.candidates, q[0].dtype, block
        )
        judged(call, deep_gemm.fp8_fp4_paged_sparse_mqa_logits(q, call.kv_cache, call.weights, metadata, 6, block), block)


def test_listed_blocks_of_fp8_keys_with_float32_scales() -> None:
    """Which DeepGEMM has none for."""
    call = sparse.make_call([(0, 70), (17, 90)], 2, 110, 6, relative=False)
    made = (call.starts, call.ends, 110, call.candidates, torch.float8_e4m3fn, 8, True)
    metadata = deep_gemm.get_sparse_mqa_logits_metadata(*made)
    kv = (call.k, call.k_scale)
    judged(call, deep_gemm.fp8_fp4_sparse_mqa_logits((call.q, None), kv, call.weights, metadata, 6, 8), 8, relative=False)
    call = sparse.make_paged_call([70, 133], 6)
    made = (call.context_lens, call.block_table, call.context_lens, 64, call.candidates, torch.float8_e4m3fn, 8)
    metadata = deep_gemm.get_paged_sparse_mqa_logits_metadata(*made)
    judged(call, deep_gemm.fp8_fp4_paged_sparse_mqa_logits(call.q, call.kv_cache, call.weights, metadata, 6, 8), 8)


def test_ours_is_as_near_to_deep_gemm_s_arithmetic_as_its_tests_ask() -> None:
    """Its kernels sum over the heads in bfloat16; ours rounds once."""
    call = sparse.make_call("causal", 20, 110, 12, 8, 32, 128, relative=False, pair=("mxfp4", "mxfp4"))
    call = call._replace(weights=call.weights.bfloat16())
    metadata = deep_gemm.get_sparse_mqa_logits_metadata(call.starts, call.ends, 110, call.candidates, torch.int8, 8)
    q, kv = (theirs(call.q), call.q_scale), (theirs(call.k), call.k_scale)
    logits = deep_gemm.fp8_fp4_sparse_mqa_logits(q, kv, call.weights, metadata, 12, 8)
    theirs_sums = torch.zeros(logits.shape, dtype=torch.bfloat16)
    options: dict[str, Any] = {"clean_logits": True, "candidate_block": 8, "relative": False, "bfloat16_sums": True}
    reference.launch(MxDense(*call), theirs_sums, **options)
    seen = theirs_sums.isfinite()
    assert 0 < judge.calc_diff(logits[seen], theirs_sums[seen]) < SM100


def test_a_step_with_listed_blocks_is_compiled_whole() -> None:
    call = sparse.make_paged_call([70, 133], 6, heads=32, dim=128, pair=("mxfp4", "mxfp4"))

    def step(call: Any) -> torch.Tensor:
        rows = (call.context_lens, call.block_table, call.context_lens, 64, call.candidates)
        metadata = deep_gemm.get_paged_sparse_mqa_logits_metadata(*rows, torch.int8, 8)
        q = (call.q.view(torch.int8), call.q_scale)
        return deep_gemm.fp8_fp4_paged_sparse_mqa_logits(q, call.kv_cache, call.weights, metadata, 6, 8)

    torch._dynamo.reset()
    judged(call, torch.compile(step, backend="eager", fullgraph=True)(call), 8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"metadata": torch.zeros(100, dtype=torch.uint8)},
            r"metadata: got shape \(100,\), needs what the function for it makes",
        ),
        ({"metadata": torch.zeros(100, dtype=torch.int32)}, r"metadata: got torch\.int32, needs torch\.uint8"),
        ({"num_max_sparse_blocks": 5}, "metadata: got shape .* of 2 rows with 5 blocks"),
        ({"num_max_sparse_blocks": -1}, "num_max_sparse_blocks: got -1"),
        ({"sparse_block_kv": 32}, "sparse_block_kv: got 32, needs 8 or 16"),
        ({"q": (torch.zeros(2, 32, 64, dtype=torch.int8), None)}, "queries in FP4 without scales"),
    ],
)
def test_what_the_logits_of_listed_blocks_do_not_take(change: dict[str, Any], words: str) -> None:
    call = sparse.make_call([(0, 70), (16, 90)], 2, 110, 6, 8, 32, 128, relative=False, pair=("mxfp4", "mxfp4"))
    good = {
        "q": (theirs(call.q), call.q_scale),
        "kv": (theirs(call.k), call.k_scale),
        "weights": call.weights,
        "metadata": deep_gemm.get_sparse_mqa_logits_metadata(call.starts, call.ends, 110, call.candidates, torch.int8, 8),
        "num_max_sparse_blocks": 6,
        "sparse_block_kv": 8,
    }
    deep_gemm.fp8_fp4_sparse_mqa_logits(**good)
    with pytest.raises((ValueError, TypeError), match=words):
        deep_gemm.fp8_fp4_sparse_mqa_logits(**good | change)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sparse_kv_block_indices": torch.zeros(3, 4, dtype=torch.int32)}, r"sparse_kv_block_indices: got shape \(3, 4\)"),
        ({"qk_dtype": torch.uint8}, "qk_dtype: got"),
        ({"sparse_block_kv": 12}, "sparse_block_kv: got 12, needs 8 or 16"),
        ({"use_unaligned_ks": 1}, "use_unaligned_ks: got int, needs a bool"),
        ({"num_kv_tokens": -1}, "num_kv_tokens: got -1"),
    ],
)
def test_what_metadata_is_not_made_of(change: dict[str, Any], words: str) -> None:
    good = {
        "cu_seq_len_k_start": torch.zeros(2, dtype=torch.int32),
        "cu_seq_len_k_end": torch.ones(2, dtype=torch.int32),
        "num_kv_tokens": 8,
        "sparse_kv_block_indices": torch.zeros(2, 4, dtype=torch.int32),
        "qk_dtype": torch.int8,
        "sparse_block_kv": 8,
    }
    deep_gemm.get_sparse_mqa_logits_metadata(**good)
    with pytest.raises((ValueError, TypeError), match=words):
        deep_gemm.get_sparse_mqa_logits_metadata(**good | change)
