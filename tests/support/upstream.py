"""Tests as aiter, DeepGEMM and vLLM have them for their MQA logits: their imports, call shapes, sizes and judgements.

They run with the drop-ins installed into packages of those names whose own functions fail when they are called.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent

import torch

from capgate.kernels import dropin

from . import judge

UNQUANTISED = 1e-3  # upstream's limit of calc_diff against inputs that were not quantised; judge.CALC_DIFF is the other one
# Rows that this takes: quantising alone makes up to 4e-3 of it in one row, and at most 9e-4 in 17 rows (of 40 draws each).
ENOUGH_ROWS = 16
FLOAT64_BYTES = 2**29
TILE = 16

# What DeepGEMM has under names that a drop-in replaces, in each generation.
DENSE = "q, kv, weights, cu_seq_len_k_start, cu_seq_len_k_end"
PAGED = "q, kv_cache, weights, context_lens, block_table, schedule_meta, max_context_len"
SCHEDULE = "get_paged_mqa_logits_metadata(context_lens, block_kv, num_sms, indices=None)"
LEGACY = (
    f"fp8_mqa_logits({DENSE}, clean_logits=True, max_seqlen_k=0)",
    f"fp8_paged_mqa_logits({PAGED}, clean_logits=False, indices=None)",
    SCHEDULE,
)
INTERMEDIATE = (
    *LEGACY,
    f"fp8_fp4_mqa_logits({DENSE}, clean_logits=True, max_seqlen_k=0, logits_dtype=None)",
    f"fp8_fp4_paged_mqa_logits({PAGED}, clean_logits=False, logits_dtype=None, indices=None)",
)
SGL = (
    "fp8_mqa_logits(q, kv, weights, ks, ke, clean_logits=False, max_seqlen_k=0)",
    *LEGACY[1:],
    f"fp8_fp4_mqa_logits({DENSE}, clean_logits=False, max_seqlen_k=0, logits_dtype=None, schedule_meta=None)",
    INTERMEDIATE[4],
)
SPARSE = (
    "get_sparse_mqa_logits_metadata(cu_seq_len_k_start, cu_seq_len_k_end, num_kv_tokens, sparse_kv_block_indices, qk_dtype, "
    "sparse_block_kv, use_unaligned_ks=False)",
    "fp8_fp4_sparse_mqa_logits(q, kv, weights, metadata, num_max_sparse_blocks, sparse_block_kv, use_unaligned_ks=False)",
    "get_paged_sparse_mqa_logits_metadata(context_lens, block_table, indices, page_kv, sparse_kv_block_indices, qk_dtype, "
    "sparse_block_kv)",
    "fp8_fp4_paged_sparse_mqa_logits(q, kv_cache, weights, metadata, num_max_sparse_blocks, sparse_block_kv)",
)
CURRENT = (
    *SPARSE,
    f"fp8_fp4_mqa_logits({DENSE}, max_seqlen_k, schedule_meta=None)",
    "get_mqa_logits_metadata(cu_seq_len_k_start, cu_seq_len_k_end, num_kv_tokens, num_heads)",
    f"fp8_fp4_paged_mqa_logits({PAGED}, indices=None)",
    SCHEDULE,
)
# aiter's functions in MXFP4: of FlyDSL's kernels for decode the two, and of its Gluon kernel the three that there have been.
_FLYDSL = "q_fp4, q_scale, kv_cache, kv_scale, block_tables, weights"
FLYDSL_UNSCALED = (
    f"flydsl_pa_mqa_logits_fp4({_FLYDSL}, context_lens, max_seq_len, *, next_n=1, block_k=256, kv_block_size=64, num_warps=4, "
    "parallel_unit_num=512, out=None, cta_info=None, total_ctas=None, stream=None)"
)
FLYDSL = (
    f"flydsl_pa_mqa_logits_fp4({_FLYDSL}, context_lens, max_seq_len, *, weight_scale=1.0, next_n=1, block_k=256, "
    "kv_block_size=64, num_warps=4, parallel_unit_num=None, out=None, cta_info=None, total_ctas=None, stream=None)"
)
FLYDSL_PREFILL = (
    f"flydsl_pa_mqa_logits_fp4_prefill({_FLYDSL}, row_to_batch, local_starts, local_ends, max_seq_len, *, weight_scale=1.0, "
    "block_k=256, kv_block_size=64, num_warps=4, parallel_unit_num=512, out=None, cta_info=None, n_ctas=None, stream=None)"
)
_MXFP4 = (
    "paged_mxfp4_mqa_logits(q, q_scales, kv_cache, weights, context_lens, block_table, max_model_len, kv_scale_cache=None, "
    "out_logits=None, clean_logits=True, preshuffle=1, "
)
MXFP4 = {
    "mxfp4_first": f"{_MXFP4}dynamic=0, schedule=None)",
    "mxfp4_gather": f"{_MXFP4}scale_mode=1, dynamic=0, schedule=None, cu_ends=None, gather=None, block_scores=None, "
    "block_scores_only=False, pin_newest=False, candidate_block_size=8)",
    "mxfp4": f"{_MXFP4}scale_mode=1, dynamic=0, schedule=None, row_ends=None, query_start_loc=None, next_n=None, "
    "use_gather=False, candidates=None, block_scores=None, calc_logits=True, calc_block_scores=False, candidate_block_size=8)",
}
GENERATIONS = {"legacy": LEGACY, "intermediate": INTERMEDIATE, "sgl": SGL, "current": CURRENT}

# Where each generation is in the packages that are written here.
HOMES = {"intermediate": "deep_gemm", "sgl": "sgl_deep_gemm", "current": "vllm.third_party.deep_gemm"}

ROCM = "vllm/v1/attention/ops/rocm_aiter_mla_sparse.py"
FILES = {
    "aiter/ops/triton/attention/fp8_mqa_logits.py": ("fp8_mqa_logits",),
    "aiter/ops/triton/attention/pa_mqa_logits.py": ("deepgemm_fp8_paged_mqa_logits",),
    "aiter/ops/triton/attention/pa_mqa_logits_mxfp4.py": (MXFP4["mxfp4"],),
    "aiter/ops/flydsl/kernels/mqa_logits/pa_mqa_logits_fp4.py": (FLYDSL,),
    "aiter/ops/flydsl/kernels/mqa_logits/pa_mqa_logits_fp4_prefill.py": (FLYDSL_PREFILL,),
    "deep_gemm/__init__.py": INTERMEDIATE,
    "sgl_deep_gemm/__init__.py": SGL,
    "vllm/third_party/deep_gemm/__init__.py": CURRENT,
    "aiter/ops/cache.py": ("indexer_k_quant_and_cache", "cp_gather_indexer_k_quant_cache"),
    "aiter/ops/topk.py": ("top_k_per_row_prefill", "top_k_per_row_decode"),
    "flashinfer/topk.py": ("top_k_page_table_transform", "top_k_ragged_transform"),
    "sgl_kernel/top_k.py": ("fast_topk_v2", "fast_topk_transform_fused", "fast_topk_transform_ragged_fused"),
    "sglang/kernels/ops/attention/dsv4/topk.py": (
        "topk_transform_paged",
        "topk_transform_paged_v2",
        "topk_transform_ragged_v2",
    ),
    ROCM: (
        "rocm_fp8_mqa_logits",
        "rocm_fp8_paged_mqa_logits",
        "indexer_k_quant_and_cache_triton",
        "cp_gather_indexer_k_quant_cache_triton",
    ),
}
# vLLM's operators by their namespaces in torch.ops, which vllm/_custom_ops.py looks them up in.
OPERATORS = {
    "_C": ("top_k_per_row_prefill", "top_k_per_row_decode", "persistent_topk", "cooperative_topk"),
    "_C_cache_ops": ("indexer_k_quant_and_cache", "cp_gather_indexer_k_quant_cache"),
}
PACKAGES = ("aiter", "atom", "deep_gemm", "flashinfer", "sgl_deep_gemm", "sgl_kernel", "sglang", "vllm")


def write_packages(folder: Path, files: dict[str, tuple[str, ...]] | None = None) -> None:
    """Packages with these files, each with functions that fail when they are called: names, or names with their parameters."""
    for name, functions in (FILES if files is None else files).items():
        write_module(folder / name, "\n".join(map(failing, functions)))
    if files is None:
        spaces = [f"class {name}:\n" + indent("\n".join(map(failing, found)), "    ") for name, found in OPERATORS.items()]
        held = f"SimpleNamespace({', '.join(f'{name}={name}' for name in OPERATORS)})"
        source = ["from types import SimpleNamespace", *spaces, f"torch = SimpleNamespace(ops={held})"]
        write_module(folder / "vllm/_custom_ops.py", "\n".join(source))


def failing(function: str) -> str:
    """The source of a function that fails when it is called."""
    return f"def {function if '(' in function else function + '(*args, **kwargs)'}: raise AssertionError"


def write_module(file: Path, source: str) -> None:
    """A module, and the packages round it up to the first folder that is there."""
    for parent in reversed(file.parents):
        if not parent.exists():
            parent.mkdir()
            (parent / "__init__.py").touch()
    file.write_text(source + "\n")


def hooks() -> list[object]:
    """The import hooks of the drop-ins that are in place."""
    return [finder for finder in sys.meta_path if type(finder).__module__.startswith("capgate.")]


@contextmanager
def only_from(folder: Path) -> Iterator[None]:
    """Packages of the engines' names are found in ``folder`` alone; afterwards they, and every drop-in, are gone again."""
    others = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    for name in others:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    try:
        yield
    finally:
        for name in dropin.DROPINS:
            dropin.uninstall(name)
        assert not hooks()
        sys.meta_path[:] = finders
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        sys.modules.update(others)


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """Every drop-in, in packages that have nothing else."""
    write_packages(folder)
    with only_from(folder):
        for name in dropin.DROPINS:
            dropin.install(name)
        yield


# Operands


def quantise(values: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """fp8 values and their scales, one for each row of the last dimension."""
    scale = values.abs().float().amax(-1).clamp(min=1e-4) / judge.LARGEST[dtype]
    return (values.float() / scale[..., None]).to(dtype), scale


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def scored(q: torch.Tensor, k: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_h weights[i, h] * relu(q[i, h] . k[j]) in float64: [S, N]."""
    step = max(1, FLOAT64_BYTES // (8 * q.shape[1] * max(1, len(k))))
    parts = []
    for row in range(0, len(q), step):
        dots = torch.einsum("ihd,jd->ihj", q[row : row + step].double(), k.double()).relu_()
        parts.append(torch.einsum("ih,ihj->ij", weights[row : row + step].double(), dots))
    return torch.cat(parts)


def judged(
    logits: torch.Tensor, outside: torch.Tensor, unquantised: torch.Tensor, dequantised: torch.Tensor, limit: float
) -> None:
    """Upstream's judgement: the same cells are -inf, and calc_diff is small against both kinds of inputs."""
    assert torch.equal(logits == float("-inf"), outside)
    limits = [(dequantised, limit), (unquantised, UNQUANTISED)][: 1 + (len(logits) >= ENOUGH_ROWS)]
    for expected, limit in limits:
        difference = judge.calc_diff(logits.masked_fill(outside, 0), expected.masked_fill(outside, 0))
        assert difference < limit, f"calc_diff is {difference:.2e}"


class Prefill:
    """Operands of a dense call; the last rows of a request, or what one rank of several has of it."""

    def __init__(
        self, device: str, rows: int, keys: int, heads: int, dim: int, *, parallel: bool, dtype: torch.dtype, seed: int = 0
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        self.q, self.kv = random(generator, rows, heads, dim), random(generator, keys, dim)
        self.weights = random(generator, rows, heads, dtype=torch.float32)
        self.q_fp8, (self.k_fp8, self.scale) = self.q.to(dtype), quantise(self.kv, dtype)
        if parallel:
            self.ks, self.ke = judge.make_windows("context-parallel", rows, keys, device=device)
        else:
            self.ks = torch.zeros(rows, dtype=torch.int, device=device)
            self.ke = torch.arange(rows, dtype=torch.int, device=device) + (keys - rows)
        position = torch.arange(keys, device=device)
        self.outside = ~((position >= self.ks[:, None]) & (position < self.ke[:, None]))

    def judge(self, logits: torch.Tensor, limit: float = judge.CALC_DIFF, most: int | None = None) -> None:
        """Judge [S, N], -inf outside the windows; ``most`` rows of it, where all would take too long."""
        some = slice(None, None, 1 if most is None else -(-len(logits) // most))
        q, q_fp8, weights = self.q[some], self.q_fp8[some], self.weights[some]
        dequantised = scored(q_fp8.float(), self.k_fp8.float() * self.scale.reshape(-1, 1), weights)
        judged(logits[some], self.outside[some], scored(q, self.kv, weights), dequantised, limit)

    def spread(self, compressed: torch.Tensor, *, first_key: bool) -> torch.Tensor:
        """The windows' cells in a full-sized tensor of -inf; ``first_key`` says that column 0 is a row's first key."""
        full = torch.full(self.outside.shape, float("-inf"), dtype=compressed.dtype, device=compressed.device)
        for row, (start, end) in enumerate(zip(self.ks.tolist(), self.ke.tolist(), strict=True)):
            offset = start if first_key else 0
            full[row, start:end] = compressed[row, start - offset : end - offset]
        return full


class Decode:
    """Operands of a paged call: requests of random lengths in scattered blocks.

    most_keys : that the cache holds; if the requests have more, they share blocks
    """

    def __init__(
        self,
        device: str,
        requests: int,
        next_n: int,
        heads: int,
        dim: int,
        mean: int,
        block: int,
        *,
        two_d: bool = False,
        dtype: torch.dtype,
        most_keys: int | None = None,
        seed: int = 0,
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        low, high = max(next_n, int(0.7 * mean)), int(1.3 * mean) + 1
        lens = torch.randint(low, high, (requests,), generator=generator, device=device, dtype=torch.int32)
        entries = -(-lens.long() // block)
        blocks = int(entries.sum()) + 3
        if most_keys is None or blocks * block <= most_keys:
            pages = torch.randperm(blocks, generator=generator, device=device).int()
        else:
            blocks, wanted = most_keys // block, blocks
            pages = torch.randint(blocks, (wanted,), generator=generator, device=device, dtype=torch.int32)
        self.table = torch.zeros(requests, int(entries.max()), dtype=torch.int32, device=device)
        used = torch.arange(self.table.shape[1], device=device) < entries[:, None]
        self.table[used] = pages[: int(entries.sum())]
        self.q = random(generator, requests, next_n, heads, dim)
        self.q_fp8 = self.q.to(dtype)
        self.weights = random(generator, requests * next_n, heads, dtype=torch.float32)
        self.keys = random(generator, blocks, block, dim)
        self.keys_fp8, self.scales = quantise(self.keys, dtype)
        steps = torch.arange(next_n, device=device)
        if two_d:
            part = torch.rand(requests, next_n, generator=generator, device=device)
            self.lens = ((lens[:, None] + 1) * part).int()
            self.lens[:, -1] = lens
            self.seen = self.lens.long().flatten()
        else:
            self.lens, self.seen = lens, (lens.long()[:, None] - next_n + 1 + steps).flatten()
        self.requests, self.next_n, self.block, self.dim = requests, next_n, block, dim

    @property
    def contexts(self) -> torch.Tensor:
        """Keys of each request, int64 [B * next_n]."""
        longest = self.lens if self.lens.ndim == 1 else self.lens[:, -1]
        return longest.long().repeat_interleave(self.next_n)

    def cache(self, *, tiles: bool = False, width: int | None = None) -> torch.Tensor:
        """[num_blocks, block, 1, width] bytes: a block's keys, in tiles of 16 by 16 if so asked, then its scales."""
        octets = self.keys_fp8.view(torch.uint8)
        if tiles:
            shape = (len(octets), self.block // TILE, TILE, self.dim // TILE, TILE)
            octets = octets.view(shape).permute(0, 1, 3, 2, 4)
        width = width or self.dim + 4
        packed = torch.full((len(octets), self.block * width), 0xFF, dtype=torch.uint8, device=octets.device)
        packed[:, : self.block * self.dim] = octets.reshape(len(octets), -1)
        scales = self.scales.view(torch.uint8).reshape(len(octets), -1)
        packed[:, self.block * self.dim : self.block * (self.dim + 4)] = scales
        return packed.view(len(octets), self.block, 1, width)

    def outside(self, columns: int) -> torch.Tensor:
        """[B * next_n, columns]: which cells their row sees no key of."""
        return torch.arange(columns, device=self.seen.device) >= self.seen[:, None]

    def judge(self, logits: torch.Tensor, limit: float = judge.CALC_DIFF, most: int | None = None) -> None:
        """Judge [B * next_n, columns], -inf where a row sees no key; ``most`` requests, where all would take too long."""
        requests = range(0, self.requests, 1 if most is None else -(-self.requests // most))
        judged_rows = [request * self.next_n + row for request in requests for row in range(self.next_n)]
        columns, logits = logits.shape[1], logits[judged_rows]
        outside = torch.arange(columns, device=logits.device) >= self.seen[judged_rows][:, None]
        pair = [torch.zeros(logits.shape, dtype=torch.float64, device=logits.device) for _ in range(2)]
        kinds = ((self.q, self.keys), (self.q_fp8.float(), self.keys_fp8.float() * self.scales[..., None]))
        for number, request in enumerate(requests):
            first, rows = number * self.next_n, slice(request * self.next_n, (request + 1) * self.next_n)
            for expected, (q, keys) in zip(pair, kinds, strict=True):
                own = keys[self.table[request].long()].flatten(0, 1)[:columns]
                expected[first : first + self.next_n, : len(own)] = scored(q[request], own, self.weights[rows])
        judged(logits, outside, *pair, limit)


# DeepGEMM: tests/test_attention.py


def deep_gemm_mqa_logits(call: Prefill, *, compressed: bool, generation: str = "intermediate") -> None:
    """Every dense function that the generation has; 2.8's output is always compressed."""
    rows, keys = call.outside.shape
    most = int((call.ke - call.ks).max()) if compressed else 0
    for logits in _dense(call, most, generation):
        columns, step = (most, most) if compressed else (keys, keys + 256)
        assert (logits.size(), logits.dtype) == ((rows, columns), torch.float32)
        assert logits.stride() == (-(-step // 256) * 256, 1)
        tile = 128 // call.q.shape[1]
        assert logits.untyped_storage().nbytes() == -(-rows // tile) * tile * logits.stride(0) * 4
        call.judge(call.spread(logits, first_key=True) if compressed else logits)


def _dense(call: Prefill, most: int, generation: str) -> Iterator[torch.Tensor]:
    library, kv = importlib.import_module(HOMES[generation]), (call.k_fp8, call.scale)
    q, operands = call.q_fp8, (kv, call.weights, call.ks, call.ke)
    if generation == "current":
        yield library.fp8_fp4_mqa_logits((q, None), *operands, most)
        return
    options = {"clean_logits": not most, "max_seqlen_k": most}
    yield library.fp8_mqa_logits(q, *operands, **options)
    yield library.fp8_fp4_mqa_logits((q, None), *operands, **options)


def deep_gemm_paged_mqa_logits(call: Decode, max_model_len: int, generation: str = "intermediate") -> None:
    """Every paged function that the generation has, which all read one schedule."""
    from capgate.kernels.dropin.deep_gemm import get_num_sms

    library = importlib.import_module(HOMES[generation])
    schedule = library.get_paged_mqa_logits_metadata(call.lens, call.block, get_num_sms())
    assert (schedule.shape, schedule.dtype) == ((get_num_sms() + 1, 2), torch.int32)
    operands = (call.cache(), call.weights, call.lens, call.table, schedule, max_model_len)
    outside = torch.arange(max_model_len, device=call.q.device) >= call.seen[:, None]
    clean = call.lens.ndim == 1
    found = []
    if generation != "current":
        found.append(library.fp8_paged_mqa_logits(call.q_fp8, *operands, clean_logits=clean))
        assert torch.equal(found[0] == float("-inf"), outside) or not clean
    found.append(library.fp8_fp4_paged_mqa_logits((call.q_fp8, None), *operands))
    for logits in found:
        assert (logits.size(), logits.dtype) == ((len(call.weights), max_model_len), torch.float32)
        assert logits.stride() == (-(-max_model_len // 256) * 256, 1)
        call.judge(logits.masked_fill(outside, float("-inf")))


# aiter: op_tests/triton_tests/attention/test_fp8_mqa_logits.py and op_tests/test_mqa_logits.py


def aiter_mqa_logits(call: Prefill, *, clean_logits: bool) -> None:
    from aiter.ops.triton.attention.fp8_mqa_logits import fp8_mqa_logits

    scale = call.scale.squeeze()  # a 0-d tensor for one key
    logits = fp8_mqa_logits(call.q_fp8, call.k_fp8, scale, call.weights, call.ks, call.ke, clean_logits)
    rows, keys = call.outside.shape
    assert logits.size() == (rows, keys)
    assert logits.stride() == (-(-keys // 256) * 256, 1)
    call.judge(logits if clean_logits else call.spread(logits, first_key=False))
    named = fp8_mqa_logits(
        Q=call.q_fp8,
        KV=call.k_fp8,
        kv_scales=call.scale[:, None],
        weights=call.weights,
        cu_starts=call.ks,
        cu_ends=call.ke,
        clean_logits=True,
    )  # as ATOM calls it
    call.judge(named)


def aiter_paged_mqa_logits(call: Decode, max_model_len: int, *, preshuffle: bool, width: int | None = None) -> None:
    from aiter.ops.triton.attention.pa_mqa_logits import deepgemm_fp8_paged_mqa_logits

    rows = len(call.weights)
    cache = call.cache(tiles=preshuffle, width=width).view(call.q_fp8.dtype)
    out = torch.full((rows, max_model_len), float("nan"), device=cache.device)
    deepgemm_fp8_paged_mqa_logits(
        call.q_fp8,
        cache,
        call.weights,
        out,
        call.lens,
        call.table,
        max_model_len,
        Preshuffle=preshuffle,
        KVBlockSize=call.block,
        ChunkK=256,
        WavePerEU=2,
    )
    position = torch.arange(max_model_len, device=out.device)
    beyond = position >= call.contexts[:, None]
    assert out[beyond].isnan().all(), "a cell was written that no row of the request sees"
    call.judge(out.masked_fill(beyond, float("-inf")))


# vLLM: tests/kernels/attention/, for ROCm


def vllm_mqa_logits(call: Prefill) -> None:
    from vllm.v1.attention.ops.rocm_aiter_mla_sparse import rocm_fp8_mqa_logits

    kv = (call.k_fp8, call.scale[:, None])
    logits = rocm_fp8_mqa_logits(call.q_fp8, kv, call.weights, call.ks, call.ke)
    assert (logits.size(), logits.stride(1), logits.dtype) == (call.outside.shape, 1, torch.float32)
    call.judge(call.spread(logits, first_key=False))  # clean_logits is False there


def vllm_paged_mqa_logits(call: Decode, max_model_len: int, compress_ratio: int) -> None:
    from vllm.v1.attention.ops.rocm_aiter_mla_sparse import rocm_fp8_paged_mqa_logits

    nothing = torch.zeros(8, 2, dtype=torch.int32, device=call.q.device)  # a schedule that would leave every key out
    operands = (call.q_fp8, call.cache(), call.weights, call.lens, call.table, nothing)
    logits = rocm_fp8_paged_mqa_logits(*operands, max_model_len=max_model_len, compress_ratio=compress_ratio)
    assert logits.size() == (len(call.weights), max_model_len)
    assert logits.is_contiguous()
    assert logits.dtype == torch.float32
    call.judge(logits)
