"""Selection of the top keys of every query without a buffer of logits: scored, filtered and selected from in one kernel.

:func:`capgate.kernels.select_keys` and :func:`capgate.kernels.select_paged_keys` call it; there is no function of its own.
"""

__all__: list[str] = []
