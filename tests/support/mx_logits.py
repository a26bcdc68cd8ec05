"""MQA logits in MX formats by the judge of ``capgate verify``, by which the tests judge, too."""

from capgate.kernels.tools.verify.mx_logits import DTYPES, PAIRS, MxCall, check, make_call, meaning

__all__ = ["DTYPES", "PAIRS", "MxCall", "check", "make_call", "meaning"]
