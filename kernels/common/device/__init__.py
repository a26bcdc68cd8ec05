"""Device functions that kernels of several operations call: one file a language, the same names in the same order.

Those of ``windows`` work on scalars and tensors of any layout, so that classic and Gluon kernels call the very same.
"""
