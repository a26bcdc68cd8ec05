"""Other libraries' signatures over this package's functions, and the means to put these in the place of the originals.

    from capgate.kernels import dropin

    dropin.install("aiter")  # ATOM, vLLM and SGLang on ROCm now run capgate's kernels where they call aiter's
    dropin.uninstall("aiter")

========== ===================================================================================================
drop-in    functions
========== ===================================================================================================
aiter      fp8_mqa_logits, deepgemm_fp8_paged_mqa_logits
deep_gemm  fp8_mqa_logits, fp8_paged_mqa_logits, get_paged_mqa_logits_metadata
vllm_rocm  rocm_fp8_mqa_logits, rocm_fp8_paged_mqa_logits
========== ===================================================================================================

Each is a module of this package too, for callers that would rather import it: ``from capgate.kernels.dropin import deep_gemm``.

``CAPGATE_DROPIN=aiter,vllm_rocm`` names drop-ins for :func:`activate`, which vLLM calls in each of its processes through an
entry point in the group ``vllm.general_plugins``. Other engines call it where they start. It imports neither torch nor any
library: an import hook waits until somebody else does.
"""

import os

from capgate.compat import SwitchError

from . import hook
from .replacing import (
    DROPINS,
    DropinError,
    imported,
    is_installed,
    is_there,
    loaded,
    replace,
    replace_or_warn,
    restore,
    unknown,
)

__all__ = ["DROPINS", "DropinError", "activate", "install", "states", "uninstall"]

VARIABLE = "CAPGATE_DROPIN"


def install(name: str) -> None:
    """Put this package's functions in the place of a library's, for the whole process.

    name : "aiter", "deep_gemm" or "vllm_rocm"

    The library is imported. Its functions are replaced in the modules that callers import them from, and where modules of the
    engines (packages aiter, atom, deep_gemm, sglang, vllm) hold the very same objects already; a reference elsewhere, such as
    in a closure or in other packages, is not found. One warning on the logger ``capgate`` says what was replaced. Installing
    again does nothing. Install before an engine makes schedules and captures graphs: those made earlier are the library's.

    Raises TypeError or ValueError for what is no drop-in's name, and DropinError, replacing nothing, where the library is not
    importable, does not offer every function that would be replaced, or would keep a function that reads the schedules: a
    DeepGEMM with ``fp8_fp4_paged_mqa_logits`` (2.4 and later), or a module that imported ``fp8_paged_mqa_logits`` alone.
    """
    _check(name)
    replace(name, imported(name))


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

    Raises SwitchError for a name that does not exist. Where :func:`install` would raise DropinError there is one warning
    instead, and nothing of that drop-in is replaced: an engine's import must not fail for it.
    """
    for name in _asked():
        hook.watch(name)
        if not replace_or_warn(name, loaded(name)):
            hook.forget(name)


def states() -> dict[str, dict[str, bool]]:
    """The state of each drop-in; nothing is imported.

    Keys: "asked" (CAPGATE_DROPIN names it), "library" (its library is there), "installed" (it is in force in this process).
    Raises SwitchError for a name in the variable that does not exist.
    """
    asked = _asked()
    return {name: {"asked": name in asked, "library": is_there(name), "installed": is_installed(name)} for name in DROPINS}


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
