"""How producers of MX formats choose a group's scale and round its values, each under a name.

Of a group's largest magnitude a scale is the power of two 2**e with the least e of ``a / largest <= 2**e``, a being that
magnitude, ``largest`` that of a value of the format; a byte of UE8M0 holds e + 127. No group of bfloat16 or float32 values
needs more than 253 (``3.4e38 / 6``). Producers differ in the least scale that they give, in ties, and in the sign of zeros.

Producers compute the ratio and its logarithm in float32; where a ratio is less than one part in 2**20 above a power of two, a
float32 ``log2`` can come out on it, and the largest value then saturates. No ratio of a bfloat16 value is so near.
"""

from math import frexp
from typing import NamedTuple

from .checks import check_choice, either
from .key_formats import FORMATS, GROUP

NAN_BYTE = 0xFF  # UE8M0's NaN


class Rule(NamedTuple):
    """One producer's way.

    least : of the ratio ``a / largest``: a smaller one counts as this
    even : values half-way between two of E2M1 go to the one with an even code, and not to the smaller one
    signed_zero : values that become 0 in E2M1 keep their sign
    whole : the elements of a key have one scale, which each of its groups repeats
    dims : that keys may have
    """

    least: float
    even: bool = True
    signed_zero: bool = True
    whole: bool = False
    dims: tuple[int, ...] = ()

    @property
    def least_byte(self) -> int:
        """The least scale, as its byte."""
        mantissa, exponent = frexp(self.least)  # least = mantissa * 2**exponent with mantissa in [0.5, 1)
        return exponent - (mantissa == 0.5) + 127


RULES = {
    "mxfp4": {
        # Its kernels' hardware conversion, in CUDA and Triton, for keys and queries: amax no less than 6 * 2**-126.
        "vllm": Rule(2.0**-126),
        # Its test utility: amax no less than 1e-4.
        "deepgemm": Rule(1e-4 / 6, even=False, signed_zero=False),
        # Its writers of V4's keys, and those that round to nearest even, of V4.1's: the ratio no less than 1e-4.
        "sglang": Rule(1e-4, even=False, signed_zero=False),
        "sglang-rne": Rule(1e-4),
        # Its Triton writer of keys and quantiser of queries: as vLLM's.
        "aiter": Rule(2.0**-126),
    },
    "mxfp8": {
        # Its writer of keys with scale format "mxfp8": the scale of an fp8 key, its byte four times.
        "vllm": Rule(1e-4 / 448, whole=True, dims=(128,)),
        # Its test utility with groups of 32.
        "deepgemm": Rule(1e-4 / 448),
    },
}
DEFAULT_RULE = "vllm"


def group_of(rule: Rule, dim: int) -> int:
    """Elements that have a scale of their own."""
    return dim if rule.whole else GROUP


def carry_of(largest: float) -> tuple[int, int]:
    """What makes the byte of a scale out of the bits of a float32 magnitude: ``(bits + carry >> 23) - exponent``.

    The carry is what a fraction may have at most that divided by ``largest`` needs no larger power of two.
    """
    mantissa, exponent = frexp(largest)
    fraction = int((2 * mantissa - 1) * 2**23)
    return 0x7FFFFF - fraction, exponent - 1


def constants_of(key_format: str, rule: Rule, dim: int) -> dict[str, int | float | bool]:
    """The constants of :func:`.device.number_formats.mx_octets`."""
    largest = FORMATS[key_format].largest
    carry, exponent = carry_of(largest)
    return {
        "FP4": key_format == "mxfp4",
        "GROUP": group_of(rule, dim),
        "LARGEST": largest,
        "CARRY": carry,
        "EXPONENT": exponent,
        "LEAST": rule.least_byte,
        "EVEN": rule.even,
        "SIGNED_ZERO": rule.signed_zero,
    }


def check_rule(key_format: str, rule: str, dim: int) -> None:
    """Raise TypeError or ValueError for a rule that a format does not have, or not for keys of so many dims."""
    rules = RULES[key_format]
    check_choice("rule", rule, tuple(rules))
    if rules[rule].dims and dim not in rules[rule].dims:
        others = either([repr(name) for name, row in rules.items() if not row.dims or dim in row.dims])
        raise ValueError(
            f"rule: got {rule!r}, which in {key_format} has D {either(rules[rule].dims)}; with D {dim} needs {others}"
        )
