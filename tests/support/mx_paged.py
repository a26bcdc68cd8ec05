"""Paged MQA logits in MX formats by the judge of ``capgate verify``, by which the tests judge, too."""

from capgate.kernels.tools.verify.mx_paged import MxPagedCall, apart, check, formula, make_call

__all__ = ["MxPagedCall", "apart", "check", "formula", "make_call"]
