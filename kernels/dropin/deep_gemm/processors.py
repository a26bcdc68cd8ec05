"""How many SMs DeepGEMM's kernels use: a number that its callers set and ask for."""

import torch

from ...common.checks import check_integer
from ...common.hardware import multiprocessors

_num_sms: int | None = None


def get_num_sms() -> int:
    """How many SMs kernels are to use: what :func:`set_num_sms` set, else all of the current GPU; 1 without a GPU."""
    if _num_sms is not None:
        return _num_sms
    if not torch.cuda.is_available():
        return 1
    return multiprocessors(torch.device("cuda", torch.cuda.current_device()))


def set_num_sms(num_sms: int) -> None:
    """Set what :func:`get_num_sms` returns, for schedules with fewer workers.

    Raises TypeError for what is no integer, ValueError for less than 1.
    """
    global _num_sms
    _num_sms = check_integer("num_sms", num_sms, 1)
