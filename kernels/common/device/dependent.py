"""A launch that starts while the one before it runs, in Triton: NVIDIA's programmatic dependent launch.

``gdc_launch_dependents`` lets the next launch of the stream start, if it has the option ``launch_pdl``, once all programs have
come there or ended; it calls ``gdc_wait`` before it looks at what this one writes. Both are None where a build has no back end
for NVIDIA: for kernels that ask for the capability ``dependent_launch`` first.
"""

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
except ImportError:
    gdc_launch_dependents = gdc_wait = None

__all__ = ["gdc_launch_dependents", "gdc_wait"]
