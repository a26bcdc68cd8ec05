"""Compiling any operation's variants for a GPU that need not be here, and reading what they became.

from capgate.compat.offline import compile_variants

result = compile_variants("fp8_mqa_logits", "hip:gfx950")
[(row["variant"], row["mode"], row["vgprs"], row["spills"]) for row in result["variants"]]
"""

from .jobs import Job, compile_jobs, compile_variants

__all__ = ["Job", "compile_jobs", "compile_variants"]
