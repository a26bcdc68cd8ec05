"""Other libraries' signatures over this package's functions, and the means to put these in the place of the originals.

    from capgate.kernels import dropin

    dropin.install("aiter")  # ATOM, vLLM and SGLang on ROCm now run capgate's kernels where they call aiter's
    dropin.uninstall("aiter")

========== ===============================================================================================================
drop-in    functions
========== ===============================================================================================================
aiter      fp8_mqa_logits, deepgemm_fp8_paged_mqa_logits, indexer_k_quant_and_cache, cp_gather_indexer_k_quant_cache,
           top_k_per_row_prefill, top_k_per_row_decode; in MXFP4 flydsl_pa_mqa_logits_fp4,
           flydsl_pa_mqa_logits_fp4_prefill, paged_mxfp4_mqa_logits
deep_gemm  fp8_mqa_logits; fp8_fp4_mqa_logits with get_mqa_logits_metadata; fp8_paged_mqa_logits and
           fp8_fp4_paged_mqa_logits with get_paged_mqa_logits_metadata; fp8_fp4_sparse_mqa_logits with
           get_sparse_mqa_logits_metadata, fp8_fp4_paged_sparse_mqa_logits with get_paged_sparse_mqa_logits_metadata
flashinfer top_k_page_table_transform, top_k_ragged_transform
sglang     topk_transform_paged, topk_transform_paged_v2, topk_transform_ragged_v2, and sgl_kernel's fast_topk_v2,
           fast_topk_transform_fused, fast_topk_transform_ragged_fused
vllm       torch.ops._C_cache_ops.indexer_k_quant_and_cache, torch.ops._C_cache_ops.cp_gather_indexer_k_quant_cache,
           torch.ops._C.top_k_per_row_prefill, torch.ops._C.top_k_per_row_decode, torch.ops._C.persistent_topk,
           torch.ops._C.cooperative_topk
vllm_rocm  rocm_fp8_mqa_logits, rocm_fp8_paged_mqa_logits, indexer_k_quant_and_cache_triton,
           cp_gather_indexer_k_quant_cache_triton
========== ===============================================================================================================

Each is a module of this package too, for callers that would rather import it: ``from capgate.kernels.dropin import deep_gemm``.

``CAPGATE_DROPIN=aiter,vllm_rocm`` names drop-ins for :func:`activate`, which vLLM calls in each of its processes through an
entry point in the group ``vllm.general_plugins``. Other engines call it where they start. It imports neither torch nor any
library: an import hook waits until somebody else does.
"""

import os
from typing import Any

from capgate.compat import SwitchError

from . import hook
from .families import DROPINS, NotServed
from .replacing import DropinError, is_installed, replace_or_warn, report, restore, unknown
from .replacing import install as install_now
from .reports import Report
from .sites import is_there, loaded

__all__ = ["DROPINS", "DropinError", "NotServed", "Report", "activate", "install", "states", "uninstall"]

VARIABLE = "CAPGATE_DROPIN"


def install(name: str) -> Report:
    """Put this package's functions in the place of a library's, for the whole process.

    name : a drop-in of the table above

    The library is imported. A drop-in replaces families of functions: each whole, or not at all where the library lacks a part
    of it, its module does not import, or something would go on reading the schedules that one of its functions makes. They are
    replaced in the modules that callers import them from, and where modules of the engines (packages aiter, atom, deep_gemm,
    flashinfer, sgl_kernel, sglang, vllm) hold the very same objects already, or have them as the results of functions with a
    ``functools`` cache, which are cleared; a reference elsewhere, such as in a closure or in other packages, is not found.
    Modules of the library that are imported later follow. Each of ours is bound to the function in whose place it stands: that
    is called where :class:`NotServed` says that ours cannot serve a call, with one warning for each reason.

    Returns what was taken, where it stands, and what was left, and why; one warning on the logger ``capgate`` says the same.
    Installing again does nothing. Install before an engine makes schedules and captures graphs: those made earlier are the
    library's.

    Raises TypeError or ValueError for what is no drop-in's name, and DropinError where there is nothing to replace.
    """
    _check(name)
    done = install_now(name)
    hook.watch(name)
    return done


def uninstall(name: str) -> None:
    """Undo :func:`install` and :func:`activate` for one drop-in: the very objects that were replaced are put back.

    Does nothing where it is not installed. A function that somebody else has put in the place of ours stays, with a warning.
    Raises TypeError for what is no name, ValueError for one that does not exist.
    """
    _check(name)
    hook.forget(name)
    restore(name)


def activate() -> None:
    """Install the drop-ins that CAPGATE_DROPIN names, each as soon as its library's modules are imported; none without it.

    A library that is never imported stays unimported. Calling it again does nothing.

    Raises SwitchError for a name that does not exist. Where a family is left there is one warning, and nothing is raised
    inside an engine's import; under CAPGATE_STRICT=1 it is a DropinError.
    """
    for name in _asked():
        hook.watch(name)
        if found := loaded(name):
            replace_or_warn(name, found)


def states() -> dict[str, dict[str, Any]]:
    """The state of each drop-in, as JSON types; nothing is imported.

    Keys: "asked" (CAPGATE_DROPIN names it), "library" (its library is there), "installed" (it is in force in this process),
    "taken" and "left": families of functions, with "functions", and "places" where they are in force, or the "reason" why they
    were left. Raises SwitchError for a name in the variable that does not exist.
    """
    asked = _asked()
    return {
        name: {
            "asked": name in asked,
            "library": is_there(name),
            "installed": is_installed(name),
            **report(name).as_json(),
        }
        for name in DROPINS
    }


def _asked() -> list[str]:
    names = [part.strip() for part in os.environ.get(VARIABLE, "").split(",") if part.strip()]
    for name in names:
        if said := unknown(name):
            raise SwitchError(f"{VARIABLE}: {said}")
    return names


def _check(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: got {type(name).__name__}, needs a str")
    if said := unknown(name):
        raise ValueError(f"name: {said}")
