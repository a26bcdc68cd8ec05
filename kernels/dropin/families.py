"""What each drop-in replaces: families of functions, and the sites that a library offers them at. Declarations only."""

import re
from typing import NamedTuple


class NotServed(ValueError):  # noqa: N818 - it says what is the case, and callers handle it
    """A call is of a kind that capgate has no kernel for, such as keys with several scales; nothing has been written.

    Where ours stands in a library's place the original is called instead, with the same arguments. The message names the kind
    and nothing of the call, because it is said once for each.
    """


class Site(NamedTuple):
    """Where callers take a family's functions from: one place, so that all of them are replaced there or none.

    module : the module; an import hook waits for it
    path : what to follow from it to a function, with {} for the function's name: "torch.ops._C.{}" is an operator in a
        namespace that the module's own ``torch`` leads to
    waits : installing does not import the module, and replaces there only once somebody else has
    filled_by : the module's function that puts something there, None standing there until it has run
    called_by : as ``path``, for the function whose parameters are handed on by position: it and not the library says which of
        a function's generations is called. The function itself otherwise.
    """

    module: str
    path: str = "{}"
    waits: bool = False
    filled_by: str | None = None
    called_by: str | None = None


class Schedule(NamedTuple):
    """A schedule that functions of a family make and read: a reader that would stay keeps the family from being replaced.

    Nobody knows what a reader that is not named here does where its schedule comes from us. DeepGEMM's kernels end a worker
    where it stands exactly at the next one's begin: in other units they may never get there, and go on past the batch.

    maker : the function that makes it
    reader : the name of a function that reads it
    parameter : what readers call it, whatever their own names are
    """

    maker: str
    reader: re.Pattern[str]
    parameter: re.Pattern[str]


class Family(NamedTuple):
    """Functions that are replaced together at a site, or not at all.

    functions : all needed
    sites : where they may be. Installing imports those of the first package that is there, and replaces at all that are loaded.
    optional : replaced with the others where the site has them: a release may lack some
    schedule : what one of them makes for the others
    """

    functions: tuple[str, ...]
    sites: tuple[Site, ...]
    optional: tuple[str, ...] = ()
    schedule: Schedule | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every function of it."""
        return self.functions + self.optional


def _modules(*names: str) -> tuple[Site, ...]:
    return tuple(map(Site, names))


def _alone(*functions: str, sites: tuple[Site, ...]) -> tuple[Family, ...]:
    """A family of each function."""
    return tuple(Family((function,), sites) for function in functions)


# vLLM's wrappers call globals, which _lazy_init copies once from the DeepGEMM that it finds.
_DEEP_GEMM = (
    *_modules("deep_gemm", "sgl_deep_gemm", "vllm.third_party.deep_gemm"),
    Site("vllm.utils.deep_gemm", "_{}_impl", waits=True, filled_by="_lazy_init", called_by="{}"),
)
_PAGED_SCHEDULE = Schedule(
    "get_paged_mqa_logits_metadata",
    # fp8_, fp8_fp4_, bf16_ and more to come; makers' names say metadata, and of what counts a schedule's parts schedule
    re.compile(r"^(?!.*(?:metadata|schedule)).*paged_mqa_logits"),
    re.compile(r"\bschedule_?meta"),
)


def _sparse(maker: str, logits: str) -> Family:
    """Listed blocks: the metadata and its readers, which are those of every element type."""
    reader = re.compile(rf"^(?:[a-z]+\d+_)+{logits.removeprefix('fp8_fp4_')}$")
    return Family((maker, logits), _DEEP_GEMM, schedule=Schedule(maker, reader, re.compile(r"\bsparse_metadata\b")))


_VLLM_CACHE = (Site("vllm._custom_ops", "torch.ops._C_cache_ops.{}"),)
_VLLM_ROCM = _modules("vllm.v1.attention.ops.rocm_aiter_mla_sparse", "vllm.attention.ops.rocm_aiter_mla_sparse")

# Drop-in (a module of this package, with functions of these names) -> its families.
DROPINS: dict[str, tuple[Family, ...]] = {
    # A release has each module under a new name, an old one, or both.
    "aiter": (
        Family(("fp8_mqa_logits",), _modules("aiter.ops.triton.attention.fp8_mqa_logits", "aiter.ops.triton.fp8_mqa_logits")),
        Family(
            ("deepgemm_fp8_paged_mqa_logits",),
            _modules("aiter.ops.triton.attention.pa_mqa_logits", "aiter.ops.triton.pa_mqa_logits"),
        ),
        # In MXFP4; FlyDSL's kernels are for gfx950, and their modules import only with its compiler.
        Family(
            ("flydsl_pa_mqa_logits_fp4",),
            _modules("aiter.ops.flydsl.kernels.mqa_logits.pa_mqa_logits_fp4", "aiter.ops.flydsl.kernels.pa_mqa_logits_fp4"),
        ),
        Family(
            ("flydsl_pa_mqa_logits_fp4_prefill",),
            _modules(
                "aiter.ops.flydsl.kernels.mqa_logits.pa_mqa_logits_fp4_prefill",
                "aiter.ops.flydsl.kernels.pa_mqa_logits_fp4_prefill",
            ),
        ),
        Family(("paged_mxfp4_mqa_logits",), _modules("aiter.ops.triton.attention.pa_mqa_logits_mxfp4")),
        *_alone("top_k_per_row_prefill", "top_k_per_row_decode", sites=_modules("aiter.ops.topk")),
        Family(("indexer_k_quant_and_cache",), _modules("aiter.ops.cache")),
        Family(("cp_gather_indexer_k_quant_cache",), _modules("aiter.ops.cache")),
    ),
    # get_num_sms and set_num_sms stay theirs: their matmuls use them too.
    "deep_gemm": (
        Family(("fp8_mqa_logits",), _DEEP_GEMM),
        Family(("fp8_fp4_mqa_logits",), _DEEP_GEMM, optional=("get_mqa_logits_metadata",)),
        Family(
            ("get_paged_mqa_logits_metadata",),
            _DEEP_GEMM,
            optional=("fp8_paged_mqa_logits", "fp8_fp4_paged_mqa_logits"),
            schedule=_PAGED_SCHEDULE,
        ),
        _sparse("get_sparse_mqa_logits_metadata", "fp8_fp4_sparse_mqa_logits"),
        _sparse("get_paged_sparse_mqa_logits_metadata", "fp8_fp4_paged_sparse_mqa_logits"),
    ),
    "flashinfer": _alone("top_k_page_table_transform", "top_k_ragged_transform", sites=_modules("flashinfer.topk")),
    "sglang": (
        *_alone(
            "topk_transform_paged_v2",
            "topk_transform_ragged_v2",
            "topk_transform_paged",
            sites=_modules("sglang.kernels.ops.attention.dsv4.topk"),
        ),
        *_alone(
            "fast_topk_v2",
            "fast_topk_transform_fused",
            "fast_topk_transform_ragged_fused",
            sites=_modules("sgl_kernel.top_k", "sgl_kernel"),
        ),
    ),
    "vllm_rocm": (
        Family(("rocm_fp8_mqa_logits",), _VLLM_ROCM),
        Family(("rocm_fp8_paged_mqa_logits",), _VLLM_ROCM),
        Family(("indexer_k_quant_and_cache_triton",), _VLLM_ROCM),
        Family(("cp_gather_indexer_k_quant_cache_triton",), _VLLM_ROCM),
    ),
    "vllm": (
        Family(("indexer_k_quant_and_cache",), _VLLM_CACHE),
        Family(("cp_gather_indexer_k_quant_cache",), _VLLM_CACHE),
        *_alone(
            "top_k_per_row_prefill",
            "top_k_per_row_decode",
            "persistent_topk",
            "cooperative_topk",
            sites=(Site("vllm._custom_ops", "torch.ops._C.{}"),),
        ),
    ),
}
