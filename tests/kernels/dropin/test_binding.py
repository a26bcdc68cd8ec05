"""What stands in a library's place: which of ours, with which defaults, and the library's own for what ours lacks."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from capgate.kernels.dropin import NotServed, deep_gemm
from capgate.kernels.dropin.binding import bind, bound, original_of
from capgate.kernels.dropin.parameters import fitting, parameters, with_defaults
from support import upstream


def theirs(source: str) -> Any:
    """A library's function with these parameters, which says what it was called with."""
    scope: dict[str, Any] = {}
    exec(f"def {source}: return dict(locals())", scope)
    return next(value for name, value in scope.items() if not name.startswith("__"))


class Compiled:
    """As pybind11's functions: no signature, and a documentation that has it in its first line."""

    __signature__ = "none"

    def __init__(self, documentation: Any) -> None:
        self.__doc__ = documentation

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing."""


DOCUMENTED = (
    "fp8_fp4_mqa_logits(q: tuple[torch.Tensor, torch.Tensor | None], kv: tuple[torch.Tensor, torch.Tensor], "
    "weights: torch.Tensor, cu_seq_len_k_start: torch.Tensor, cu_seq_len_k_end: torch.Tensor, "
    "clean_logits: bool = False, max_seqlen_k: int = 0, logits_dtype: torch.dtype = torch.float32) -> torch.Tensor\n\n(of C++)"
)


def test_the_parameters_of_a_compiled_function() -> None:
    found = parameters(Compiled(DOCUMENTED))
    dense = tuple(upstream.DENSE.split(", "))
    assert found.names == (*dense, "clean_logits", "max_seqlen_k", "logits_dtype")
    assert found.defaults == {"clean_logits": False, "max_seqlen_k": 0}


def test_a_keyword_of_the_original_alone() -> None:
    """A later release may have it: what asks for something goes to the original, and what asks for nothing does not."""

    def ours(q: Any, out: Any = None) -> Any:
        return "ours", q, out

    function = bind(ours, theirs("scores(q, out=None, relative=False)")).function
    assert function(1, out=2) == function(1, out=2, relative=False) == ("ours", 1, 2)
    assert function(1, relative=True) == {"q": 1, "out": None, "relative": True}


@pytest.mark.parametrize("documentation", [None, "", "no parentheses", "f(*args, **kwargs)", "f(", "f(a, (b)", 3])
def test_what_a_function_does_not_say(documentation: Any) -> None:
    assert set(parameters(Compiled(documentation)).names) <= {"a"}


@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "python"])
@pytest.mark.parametrize(
    ("name", "generation", "module"),
    [
        ("fp8_mqa_logits", "legacy", "dense"),
        ("fp8_mqa_logits", "intermediate", "dense"),
        ("fp8_mqa_logits", "sgl", "sgl"),
        ("fp8_fp4_mqa_logits", "intermediate", "before_2_8"),
        ("fp8_fp4_mqa_logits", "sgl", "before_2_8"),
        ("fp8_fp4_mqa_logits", "current", "dense"),
        ("fp8_fp4_paged_mqa_logits", "intermediate", "before_2_8"),
        ("fp8_fp4_paged_mqa_logits", "current", "paged"),
    ],
)
def test_the_generation_is_told_by_the_signature(name: str, generation: str, module: str, compiled: bool) -> None:
    (source,) = (one for one in upstream.GENERATIONS[generation] if one.startswith(f"{name}("))
    original = Compiled(source) if compiled else theirs(source)
    chosen = fitting(deep_gemm.GENERATIONS[name], parameters(original))
    assert chosen.__module__.rpartition(".")[2] == module


def test_a_function_that_says_nothing_is_of_the_newest_generation() -> None:
    for candidates in deep_gemm.GENERATIONS.values():
        assert fitting(candidates, parameters(Compiled(None))) is candidates[0]


def test_what_callers_leave_out_means_what_the_library_says() -> None:
    """sgl-deep-gemm does not clean by default where DeepGEMM does. The function itself stays what it was."""
    ours = deep_gemm.before_2_8.fp8_fp4_mqa_logits
    asked = {"clean_logits": False, "max_seqlen_k": None, "logits_dtype": None, "other": 3}
    other = with_defaults(ours, asked)
    before, after = (inspect.signature(function).parameters for function in (ours, other))
    changed = {name for name, one in after.items() if one.default != before[name].default}
    assert changed == {"clean_logits"}, "a default of another type has no meaning here"
    assert (before["clean_logits"].default, after["clean_logits"].default) == (True, False)
    assert with_defaults(ours, asked) is other
    assert with_defaults(ours, {"clean_logits": True}) is ours


def keyword_only(q: int, *, clean_logits: bool = True, k: int = 3) -> tuple[int, bool, int]:
    """With defaults that are given by name only."""
    return q, clean_logits, k


def test_defaults_of_keyword_only_parameters() -> None:
    assert with_defaults(keyword_only, {"clean_logits": False})(1) == (1, False, 3)


# The library's own


def test_what_ours_does_not_serve_goes_to_the_original(said: Callable[[], list[str]]) -> None:
    """With the arguments as they came, once said for each reason."""
    calls = []

    def ours(kind: str, *, other: int = 0) -> str:
        if kind != "fp8":
            raise NotServed(f"{kind} operands of a test")
        return "ours"

    def original(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return "theirs"

    function = bind(ours, original).function
    assert [function(kind, other=2) for kind in ("fp8", "mx", "mx", "fp4", "fp8")] == [
        "ours",
        "theirs",
        "theirs",
        "theirs",
        "ours",
    ]
    assert calls == [(("mx",), {"other": 2})] * 2 + [(("fp4",), {"other": 2})]
    words = "drop-in ours: the library's own function is called"
    assert said() == [f"{words}: mx operands of a test", f"{words}: fp4 operands of a test"]


def test_other_errors_are_ours() -> None:
    def ours(value: int) -> None:
        raise ValueError(f"value: got {value}, needs another")

    with pytest.raises(ValueError, match="value: got 3") as raised:
        bind(ours, print).function(3)
    assert not isinstance(raised.value, NotServed)


def test_an_error_of_the_original_is_its_own() -> None:
    def ours() -> None:
        raise NotServed("a call of another test")

    def original() -> None:
        raise RuntimeError("theirs")

    with pytest.raises(RuntimeError, match="theirs") as raised:
        bind(ours, original).function()
    assert raised.value.__context__ is None


def test_one_function_for_an_original_wherever_it_stands() -> None:
    known = bind(keyword_only, print)
    assert bind(keyword_only, print) is known
    assert bound(known.function) is known
    assert original_of(known.function) is print
    assert bound(print) is None
    assert original_of(print) is print
    assert inspect.signature(known.function) == inspect.signature(keyword_only)
