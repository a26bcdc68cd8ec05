"""Device functions of the fused selections' kernels."""
