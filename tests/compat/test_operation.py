"""operation: the choice between variants is ordered, explained and remembered; what fails is set aside aloud, and once."""

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from capgate import compat
from capgate.compat import CapabilityError, Operation, Step, SwitchError, Trace, Variant

triton = pytest.importorskip("triton")
tl = triton.language


class Problem(NamedTuple):
    """A class of calls for these tests."""

    device: Any = "cpu"
    size: int = 1


CPU, GFX942, GFX950, SM90 = (Problem(device) for device in ("cpu", "hip:gfx942", "hip:gfx950", "cuda:90"))


def returns(value: Any) -> Callable[..., Any]:
    return lambda *arguments, **keywords: value


def raises(error: BaseException) -> Callable[..., Any]:
    def implementation(*arguments: Any, **keywords: Any) -> None:
        raise error

    return implementation


@pytest.fixture
def toy() -> Operation[Problem]:
    """An operation without variants, gone after the test."""
    return Operation("toy")


# Choosing


def test_the_first_variant_that_can_runs_with_the_arguments(toy) -> None:
    @toy.variant("scaled", requires=("scaled_mfma",))
    def scaled(x: int, *, factor: int) -> tuple[str, int]:
        return "scaled", x * factor

    @toy.variant("mfma", requires=("mfma",))
    def mfma(x: int, *, factor: int) -> tuple[str, int]:
        return "mfma", x * factor

    @toy.variant("plain")
    def plain(x: int, *, factor: int) -> tuple[str, int]:
        return "plain", x * factor

    assert plain(2, factor=3) == ("plain", 6), "the decorated function stays a function"
    assert list(toy.variants) == ["scaled", "mfma", "plain"]
    ran = [toy(problem, 2, factor=3) for problem in (GFX950, GFX942, SM90, CPU)]
    assert ran == [("scaled", 6), ("mfma", 6), ("plain", 6), ("plain", 6)]


def test_order_is_that_of_adding(toy) -> None:
    for name in ("b", "c", "a"):
        toy.add(Variant(name, returns(name)))
    assert toy(CPU) == "b"
    assert [step.variant for step in toy.explain(CPU).steps] == ["b", "c", "a"]


def test_a_call_may_name_its_variant(toy) -> None:
    for name in ("a", "b"):
        toy.add(Variant(name, returns(name)))
    assert toy(CPU, variant="b") == "b"
    assert toy(CPU) == "a"
    with compat.override(variant="toy=b"):
        assert toy(CPU) == "b"
        assert toy(CPU, variant="a") == "a", "the call's own word is the last"
    assert toy(CPU) == "a"


def _small(problem: Problem) -> str | None:
    return None if problem.size < 10 else f"size {problem.size}, takes 9"


def test_rules_are_asked_after_requirements_and_only_then(toy) -> None:
    toy.add(Variant("other", returns(1), requires=("sm90",), accepts=lambda problem: pytest.fail("needs sm90 first")))
    toy.add(Variant("small", returns(2), accepts=_small))
    toy.add(Variant("any", returns(3)))
    assert [toy(Problem("hip:gfx950", size)) for size in (9, 10)] == [2, 3]
    assert toy.explain(Problem("hip:gfx950", 10)).steps[1] == Step("small", False, "size 10, takes 9")


def test_a_variant_that_must_be_named(toy) -> None:
    toy.add(Variant("slow", returns("slow"), unless_named=lambda problem: "is slow; name it to use it"))
    toy.add(Variant("fast", returns("fast")))
    steps = (Step("slow", False, "is slow; name it to use it"), Step("fast", True, "needs nothing"))
    assert toy.explain(CPU) == Trace("fast", steps)
    assert toy(CPU) == "fast"
    assert toy(CPU, variant="slow") == "slow"
    with compat.override(variant={"toy": "slow"}):
        assert toy(CPU) == "slow"


def test_naming_a_variant_does_not_overrule_what_it_accepts(toy) -> None:
    toy.add(Variant("never", returns(0), accepts=lambda problem: "never does"))
    toy.add(Variant("always", returns(1)))
    with pytest.raises(CapabilityError, match=r"^toy cannot run variant 'never': never does$"):
        toy(CPU, variant="never")


def test_a_choice_is_remembered_for_each_problem_and_setting(toy) -> None:
    asked: list[Problem] = []
    toy.add(Variant("one", returns(1), accepts=asked.append))  # append returns None: accepted
    for _ in range(3):
        toy(CPU)
        toy(GFX950)
    assert asked == [CPU, GFX950]
    with compat.override(disable=["tma"]):
        toy(CPU)
        toy(CPU)
    toy(CPU)
    assert asked == [CPU, GFX950, CPU]


def test_a_choice_for_the_default_device_is_made_anew(toy, machine) -> None:
    """No GPU is never remembered, in an operation neither."""
    toy.add(Variant("gpu", returns("gpu"), requires=("gpu",)))
    toy.add(Variant("none", returns("none")))
    assert toy(Problem(None)) == "none"
    machine.amd("gfx950")
    assert toy(Problem(None)) == "gpu"


def test_a_disabled_capability_takes_its_variants_away(toy) -> None:
    toy.add(Variant("scaled", returns("scaled"), requires=("scaled_mfma",)))
    toy.add(Variant("plain", returns("plain")))
    with compat.override(disable=["scaled_mfma"]):
        assert toy(GFX950) == "plain"
        assert toy.explain(GFX950).steps[0].reason == "needs scaled_mfma: disabled by override(disable=['scaled_mfma'])"
    assert toy(GFX950) == "scaled"


@pytest.mark.parametrize(("problem", "warnings"), [(GFX950, 1), (CPU, 0)], ids=["gpu", "cpu"])
def test_a_last_resort_on_a_gpu_is_worth_one_warning(toy, warned, problem: Problem, warnings: int) -> None:
    toy.add(Variant("fast", returns(0), requires=("sm90",)))
    toy.add(Variant("slow", returns(1), last_resort=True))
    for _ in range(3):
        assert toy(problem) == 1
    expected = "toy takes slow; fast rejected: needs sm90: found gfx950; slow accepted: needs nothing"
    assert warned() == [expected] * warnings


def test_a_last_resort_that_was_named_is_no_surprise(toy, warned) -> None:
    toy.add(Variant("slow", returns(1), last_resort=True))
    assert toy(GFX950, variant="slow") == 1
    assert warned() == []


def test_other_choices_are_logged_without_a_warning(toy, caplog) -> None:
    toy.add(Variant("only", returns(1)))
    with caplog.at_level(logging.DEBUG, "capgate"):
        toy(GFX950)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "toy takes only; only accepted: needs nothing")
    ]


# Explaining


def test_explain_gives_a_step_for_every_variant(toy) -> None:
    toy.add(Variant("scaled", returns(0), requires=("scaled_mfma",)))
    toy.add(Variant("mfma", returns(0), requires=("mfma", "gfx942")))
    toy.add(Variant("plain", returns(0)))
    trace = toy.explain(GFX942)
    assert trace == Trace(
        "mfma",
        (
            Step("scaled", False, "needs gfx950: found gfx942"),
            Step("mfma", True, "found gfx942"),
            Step("plain", True, "needs nothing"),
        ),
    )
    assert str(trace).startswith("scaled rejected: needs gfx950: found gfx942; mfma accepted: found gfx942; plain accepted")


def test_explain_a_named_variant(toy) -> None:
    for name in ("a", "b"):
        toy.add(Variant(name, returns(name)))
    assert toy.explain(CPU, "b") == Trace("b", (Step("a", False, "b is named"), Step("b", True, "needs nothing")))


def test_explain_without_a_problem_asks_capabilities_only(toy) -> None:
    toy.add(Variant("scaled", returns(0), requires=("scaled_mfma",), accepts=lambda problem: pytest.fail("there is none")))
    assert toy.explain(device="hip:gfx950").variant == "scaled"
    assert toy.explain(device="hip:gfx942") == Trace(None, (Step("scaled", False, "needs gfx950: found gfx942"),))


def test_explaining_loads_nothing_and_warns_of_nothing(toy, warned) -> None:
    toy.add(Variant("absent", "no_such_package:function", last_resort=True))
    assert toy.explain(GFX950).variant == "absent"
    assert warned() == []


# Loading


def test_a_module_is_imported_only_when_its_variant_is_chosen(toy, site) -> None:
    site.package("lazy_variants", "def run(x): return x + 1")
    toy.add(Variant("other", "lazy_variants_of_hopper:run", requires=("sm90",)))
    toy.add(Variant("lazy", "lazy_variants:run"))
    assert toy.select(CPU).name == "lazy"
    assert toy.explain(CPU).variant == "lazy"
    assert "lazy_variants" not in sys.modules
    assert toy(CPU, 1) == 2
    assert "lazy_variants" in sys.modules


@pytest.mark.parametrize(
    ("source", "words"),
    [
        pytest.param(
            "raise ImportError('gluon is gone')",
            "ImportError: gluon is gone",
            id="import",
        ),
        pytest.param("raise RuntimeError('several\\nlines')", "RuntimeError: several lines", id="any error"),
        pytest.param("raise SystemExit(2)", "SystemExit: 2", id="exit"),
        pytest.param("raise type('PanicException', (BaseException,), {})('of Rust')", "PanicException: of Rust", id="panic"),
        pytest.param(
            "raise OSError('libx.so: cannot open shared object file')",
            "OSError: libx.so: cannot open shared object file",
            id="library",
        ),
        pytest.param(None, "ModuleNotFoundError: No module named 'lazy_variants'", id="missing"),
    ],
)
def test_a_variant_that_does_not_load_is_set_aside_with_one_warning(toy, site, warned, source: str | None, words: str) -> None:
    if source is not None:
        site.package("lazy_variants", source)
    toy.add(Variant("lazy", "lazy_variants:run"))
    toy.add(Variant("plain", returns("plain")))
    assert [toy(CPU) for _ in range(3)] == ["plain"] * 3
    assert warned() == [f"toy: lazy set aside: does not load: {words} for {CPU}; CAPGATE_STRICT=1 raises instead"]


# Compiling


def rejects_its_size(pointer, SIZE: tl.constexpr):  # noqa: N803 (a kernel)
    tl.static_assert(SIZE == 0, "takes no such SIZE")


def uses_what_is_gone(pointer, SIZE: tl.constexpr):  # noqa: N803
    tl.store(pointer, tl.gone_from_this_release(SIZE))


def does_not_type_check(pointer, SIZE: tl.constexpr):  # noqa: N803
    tl.store(pointer, tl.arange(0, SIZE))


def asserts_without_words(pointer, SIZE: tl.constexpr):  # noqa: N803
    tl.static_assert(SIZE == 0)


def compiles_well(pointer, SIZE: tl.constexpr):  # noqa: N803
    tl.store(pointer, SIZE)


def in_compiler(error: BaseException) -> Callable[..., Any]:
    """An implementation that fails as if in Triton's compiler."""
    scope: dict[str, Any] = {"__name__": "triton.compiler.compiler", "error": error}
    exec("def compile():\n    raise error", scope)
    return lambda *arguments, **keywords: scope["compile"]()


KERNELS = [rejects_its_size, uses_what_is_gone, does_not_type_check]


@pytest.fixture
def compiles(monkeypatch, tmp_path) -> Callable[[Callable[..., None]], Callable[..., Any]]:
    """Make an implementation that compiles a kernel for Hopper with the lane's own compiler, which needs no GPU."""
    if triton.knobs.runtime.interpret:
        pytest.skip("needs Triton's compiler: this process interprets")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # 3.9 warns where it is unset

    def make(kernel: Callable[..., None]) -> Callable[..., Any]:
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource
        from triton.runtime import JITFunction

        def implementation(*arguments: Any, **keywords: Any) -> Any:
            source = ASTSource(JITFunction(kernel), {"pointer": "*fp32", "SIZE": "constexpr"}, {(1,): 3})
            return triton.compile(source, target=GPUTarget("cuda", 90, 32))

        return implementation

    return make


@pytest.fixture
def out_of_resources() -> Exception:
    from triton.runtime.errors import OutOfResources

    error: Exception = OutOfResources(300_000, 232_448, "shared memory")
    return error


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.__name__)
def test_a_kernel_that_does_not_compile_is_set_aside_with_one_warning(toy, compiles, warned, kernel) -> None:
    toy.add(Variant("kernel", compiles(kernel)))
    toy.add(Variant("plain", returns("plain")))
    assert [toy(CPU, 1) for _ in range(3)] == ["plain"] * 3
    (warning,) = warned()
    assert warning.startswith("toy: kernel set aside: does not compile: ")
    assert warning.endswith(f" for {CPU}; CAPGATE_STRICT=1 raises instead")
    assert "\n" not in warning
    set_aside = toy.explain(CPU).steps[0]
    assert not set_aside.accepted
    assert set_aside.reason.startswith("set aside: does not compile: ")


def test_the_warning_says_what_the_compiler_said(toy, compiles, warned) -> None:
    toy.add(Variant("kernel", compiles(rejects_its_size)))
    toy.add(Variant("plain", returns("plain")))
    toy(CPU)
    assert "does not compile: CompileTimeAssertionFailure: takes no such SIZE for " in warned()[0]


def test_a_kernel_that_lacks_resources_is_set_aside_with_one_warning(toy, warned, out_of_resources) -> None:
    """Triton finds out at the first launch, before anything runs."""
    toy.add(Variant("large", raises(out_of_resources)))
    toy.add(Variant("plain", returns("plain")))
    assert [toy(CPU), toy(CPU)] == ["plain", "plain"]
    (warning,) = warned()
    assert "large set aside: does not compile: OutOfResources: out of resource: shared memory, Required: 300000" in warning


def test_a_failed_variant_is_not_tried_again(toy, warned, out_of_resources) -> None:
    """Neither by later calls nor under other switches."""
    tried: list[Problem] = []

    @toy.variant("large")
    def large(problem: Problem) -> None:
        tried.append(problem)
        raise out_of_resources

    toy.add(Variant("plain", returns("plain")))
    for _ in range(2):
        assert toy(CPU, CPU) == "plain"
        with compat.override(disable=["tma"]):
            assert toy(CPU, CPU) == "plain"
    assert tried == [CPU]
    assert len(warned()) == 1


def test_the_warning_is_given_once_even_where_the_choice_was_made_before(toy, warned, out_of_resources) -> None:
    """Another setting remembers the failed variant still, and meets the same failure."""
    toy.add(Variant("large", raises(out_of_resources)))
    toy.add(Variant("plain", returns("plain")))
    assert toy.select(CPU).name == "large"
    with compat.override(disable=["tma"]):
        assert toy(CPU) == "plain"
    assert toy(CPU) == "plain"
    assert len(warned()) == 1


def test_another_class_of_problems_is_not_affected(toy, warned, out_of_resources) -> None:
    @toy.variant("large")
    def large(problem: Problem) -> str:
        if problem.size > 9:
            raise out_of_resources
        return "large"

    toy.add(Variant("plain", returns("plain")))
    problems = [Problem("cpu", 10), Problem("cpu", 9), Problem("hip:gfx950", 9), Problem("cpu", 10)]
    assert [toy(problem, problem) for problem in problems] == ["plain", "large", "large", "plain"]
    assert len(warned()) == 1


def test_failure_after_failure_falls_through(toy, compiles, warned, out_of_resources) -> None:
    toy.add(Variant("absent", "no_such_package:function"))
    toy.add(Variant("kernel", compiles(rejects_its_size)))
    toy.add(Variant("large", raises(out_of_resources)))
    toy.add(Variant("plain", returns("plain")))
    assert [toy(CPU), toy(CPU)] == ["plain", "plain"]
    assert [warning.split()[1] for warning in warned()] == ["absent", "kernel", "large"]


def test_when_nothing_is_left_the_error_has_every_reason(toy, compiles) -> None:
    toy.add(Variant("hopper", returns(0), requires=("sm90",)))
    toy.add(Variant("small", returns(0), accepts=lambda problem: "takes nothing"))
    toy.add(Variant("absent", "no_such_package:function"))
    toy.add(Variant("kernel", compiles(rejects_its_size)))
    for _ in range(2):
        with pytest.raises(CapabilityError) as failure:
            toy(GFX950)
        words = [
            "toy cannot run no variant: hopper rejected: needs sm90: found gfx950",
            "small rejected: takes nothing",
            "absent rejected: set aside: does not load: ModuleNotFoundError: No module named 'no_such_package'",
            "kernel rejected: set aside: does not compile: CompileTimeAssertionFailure: takes no such SIZE",
        ]
        assert str(failure.value) == "; ".join(words)


def test_an_operation_without_variants_cannot_run(toy) -> None:
    with pytest.raises(CapabilityError, match=r"^toy cannot run no variant"):
        toy(CPU)


def test_the_warning_names_the_reason_first_and_the_command_behind_it(toy, warned) -> None:
    said = "Internal error\n`ptxas` stderr:\nptxas fatal   : Value 'sm_199a' is not defined\n\nRepro command: ptxas x\n"
    error = type("PTXASError", (RuntimeError,), {})(f"PTXAS error: {said}")
    error.error_message = said
    toy.add(Variant("kernel", in_compiler(error)))
    toy.add(Variant("plain", returns("plain")))
    toy(CPU)
    assert (
        "does not compile: PTXASError: ptxas fatal : Value 'sm_199a' is not defined (Repro command: ptxas x) for "
        in warned()[0]
    )


def test_an_assertion_without_words_is_named_by_its_line(toy, compiles, warned) -> None:
    toy.add(Variant("kernel", compiles(asserts_without_words)))
    toy.add(Variant("plain", returns("plain")))
    toy(CPU)
    assert "CompileTimeAssertionFailure: at 2:4: tl.static_assert(SIZE == 0) for " in warned()[0]


# Tried again


def test_strict_tries_what_was_set_aside_and_raises_its_error(toy, compiles, warned) -> None:
    toy.add(Variant("kernel", compiles(rejects_its_size)))
    toy.add(Variant("plain", returns("plain")))
    assert toy(CPU) == "plain"
    for _ in range(2):
        with compat.override(strict=True):
            assert toy.explain(CPU).variant == toy.select(CPU).name == "kernel"
            with pytest.raises(triton.CompilationError, match="takes no such SIZE"):
                toy(CPU)
        assert toy(CPU) == "plain"
    assert len(warned()) == 1


def test_strict_takes_what_was_set_aside_where_it_compiles_by_now(toy, warned, out_of_resources) -> None:
    errors = [out_of_resources]
    toy.add(Variant("large", lambda: raises(errors.pop())() if errors else "large"))
    toy.add(Variant("plain", returns("plain")))
    assert toy(CPU) == "plain"
    with compat.override(strict=True):
        assert toy(CPU) == "large"
    assert toy(CPU) == "plain"


def test_other_settings_of_triton_try_again(toy, warned, monkeypatch, out_of_resources) -> None:
    """Its ptxas did not know the architecture; the one that the variable points at from now on may."""
    errors = [out_of_resources]
    toy.add(Variant("large", lambda: raises(errors.pop())() if errors else "large"))
    toy.add(Variant("plain", returns("plain")))
    assert [toy(CPU), toy(CPU)] == ["plain", "plain"]
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/another/ptxas")
    assert [toy(CPU), toy(CPU)] == ["large", "large"]


def test_a_choice_made_before_the_driver_started_is_made_again(toy, machine, monkeypatch) -> None:
    """NVML counts in bus order, the driver has the fastest first."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    machine.nvidia({"GPU-display": (12, 0), "GPU-compute": (9, 0)})
    toy.add(Variant("hopper", returns("hopper"), requires=("sm90",)))
    toy.add(Variant("other", returns("other")))
    problem = Problem(torch.device("cuda", 0))
    assert toy(problem) == "other"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    properties = type("Properties", (), {"major": 9, "minor": 0, "gcnArchName": ""})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    assert toy.explain(problem).variant == toy.select(problem).name == toy(problem) == "hopper"


KILLED = subprocess.CalledProcessError(-9, "ptxas")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("host"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        PermissionError(errno.EACCES, "Permission denied", "/root/.triton/cache"),
        FileNotFoundError(errno.ENOENT, "No usable temporary directory found"),
        OSError("a library of the driver is gone"),
        KILLED,
    ],
    ids=repr,
)
def test_an_error_of_the_machine_in_a_compile_is_raised_and_sets_nothing_aside(toy, warned, error: Exception) -> None:
    errors = [error]
    toy.add(Variant("fast", lambda: in_compiler(errors.pop())() if errors else "fast"))
    toy.add(Variant("slow", returns("slow")))
    with pytest.raises(type(error)) as caught:
        toy(CPU)
    assert caught.value is error
    assert [toy(CPU), toy(CPU)] == ["fast", "fast"]
    assert warned() == []


def test_a_cache_folder_that_is_missing_for_a_moment_sets_nothing_aside(toy, compiles, monkeypatch, tmp_path, warned) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    implementation = compiles(compiles_well)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(blocked / "cache"))
    toy.add(Variant("kernel", implementation))
    toy.add(Variant("plain", returns("plain")))
    with pytest.raises(OSError, match="Not a directory"):
        toy(CPU)
    os.remove(blocked)
    assert toy(CPU) != "plain"
    assert warned() == []


@pytest.mark.parametrize("says", ["kill -9 $$", "echo 'ptxas fatal   : Memory allocation failure' >&2; exit 255"])
def test_a_ptxas_without_memory_sets_nothing_aside(toy, compiles, monkeypatch, tmp_path, warned, says: str) -> None:
    tool = tmp_path / "ptxas"
    tool.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo "Cuda compilation tools, release 12.9, V12.9.1" && exit\n{says}\n'
    )
    tool.chmod(0o755)
    for variable in ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH"):
        monkeypatch.setenv(variable, str(tool))
    toy.add(Variant("kernel", compiles(compiles_well)))
    toy.add(Variant("plain", returns("plain")))
    for _ in range(2):
        with pytest.raises(Exception, match=r"Internal Triton PTX codegen error|failed with error code"):
            toy(CPU)
    assert toy.explain(CPU).variant == "kernel"
    assert warned() == []


@pytest.mark.parametrize("error", ["MemoryError()", "OSError(24, 'Too many open files')"])
def test_a_module_that_the_machine_did_not_load_is_loaded_the_next_time(toy, site, warned, tmp_path, error: str) -> None:
    trail = str(tmp_path / "trail")
    site.package(
        "lazy_variants",
        f"import pathlib\nif not pathlib.Path({trail!r}).exists():\n"
        f"    pathlib.Path({trail!r}).touch()\n    raise {error}\ndef run(): return 'lazy'",
    )
    toy.add(Variant("lazy", "lazy_variants:run"))
    toy.add(Variant("plain", returns("plain")))
    with pytest.raises((MemoryError, OSError)):
        toy(CPU)
    assert toy(CPU) == "lazy"
    assert warned() == []


def test_what_the_caller_handles_is_no_fault_of_the_machine(toy, compiles, warned) -> None:
    toy.add(Variant("kernel", compiles(rejects_its_size)))
    toy.add(Variant("plain", returns("plain")))
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        assert toy(CPU) == "plain"
    assert len(warned()) == 1


def test_threads_that_meet_the_same_failure_warn_once_and_run_the_next(toy, warned, out_of_resources) -> None:
    together = threading.Barrier(4, timeout=1200)
    toy.add(Variant("large", lambda: (together.wait(), raises(out_of_resources)())))
    toy.add(Variant("plain", returns("plain")))
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(toy(CPU))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["plain"] * 4
    assert len(warned()) == 1


# Errors that must be seen


class CudaError(RuntimeError):
    """A kernel that ran and failed."""


def compile() -> None:  # noqa: A001 (not Triton's, and that is the point)
    raise CudaError("an illegal memory access was encountered")


@pytest.mark.parametrize(
    "implementation",
    [
        raises(CudaError("an illegal memory access was encountered")),
        raises(ValueError("q: got 3 dimensions, needs 2")),
        raises(MemoryError()),
        lambda: compile(),
    ],
    ids=["launched kernel", "bad argument", "memory", "a compile that is not Triton's"],
)
def test_an_error_outside_the_compiler_propagates_and_sets_nothing_aside(toy, warned, implementation) -> None:
    toy.add(Variant("first", implementation))
    toy.add(Variant("second", returns("second")))
    for _ in range(2):
        with pytest.raises((CudaError, ValueError, MemoryError)):
            toy(CPU)
    assert toy.explain(CPU).variant == "first"
    assert warned() == []


def test_an_error_propagates_untouched(toy) -> None:
    error = CudaError("an illegal memory access was encountered")
    toy.add(Variant("first", raises(error)))
    with pytest.raises(CudaError) as caught:
        toy(CPU)
    assert caught.value is error
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize("how", ["environment", "override", "named by the call", "named by a switch"])
@pytest.mark.parametrize("kernel", [*KERNELS[:1], None], ids=["compile", "load"])
def test_where_falling_back_is_not_wanted_the_error_is_raised(toy, compiles, warned, monkeypatch, how: str, kernel) -> None:
    """And nothing is set aside: without the switch the variant is tried as before."""
    toy.add(Variant("first", compiles(kernel) if kernel else "no_such_package:function"))
    toy.add(Variant("second", returns("second")))
    expected = pytest.raises(triton.CompilationError if kernel else ModuleNotFoundError)
    if how == "environment":
        monkeypatch.setenv("CAPGATE_STRICT", "1")
        with expected:
            toy(CPU)
    elif how == "override":
        with expected, compat.override(strict=True):
            toy(CPU)
    elif how == "named by the call":
        with expected:
            toy(CPU, variant="first")
    else:
        with expected, compat.override(variant="toy=first"):
            toy(CPU)
    assert toy.explain(CPU).variant == "first"
    assert warned() == []


def test_naming_a_variant_that_was_set_aside_says_why(toy, out_of_resources) -> None:
    toy.add(Variant("large", raises(out_of_resources)))
    toy.add(Variant("plain", returns("plain")))
    toy(CPU)
    with pytest.raises(CapabilityError, match=r"^toy cannot run variant 'large': set aside: does not compile: OutOfResources"):
        toy(CPU, variant="large")


# Names


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        pytest.param(
            "toi=plain",
            SwitchError,
            r"CAPGATE_VARIANT or override\(variant=\.\.\.\): no operation 'toi'; the nearest are toy",
            id="unknown operation",
        ),
        pytest.param(
            "toy=plane", ValueError, "variant: toy has no variant 'plane'; the nearest are plain", id="unknown variant"
        ),
        pytest.param(
            "toy=hopper", CapabilityError, "toy cannot run variant 'hopper': needs sm90: found gfx950", id="impossible variant"
        ),
    ],
)
def test_a_switch_that_cannot_be_is_an_error_and_never_another_path(
    toy, monkeypatch, forget, setting: str, error: type[Exception], words: str
) -> None:
    toy.add(Variant("hopper", returns(0), requires=("sm90",)))
    toy.add(Variant("plain", returns(1)))
    assert toy(GFX950) == 1
    monkeypatch.setenv("CAPGATE_VARIANT", setting)
    forget()
    for _ in range(2):
        with pytest.raises(error, match=f"^{words}"):
            toy(GFX950)


def test_a_switch_for_one_operation_leaves_others_alone(toy) -> None:
    other: Operation[Problem] = Operation("other")
    for operation in (toy, other):
        for name in ("a", "b"):
            operation.add(Variant(name, returns(name)))
    with compat.override(variant="other=b"):
        assert (toy(CPU), other(CPU)) == ("a", "b")


def test_a_call_that_names_no_variant_of_the_operation(toy) -> None:
    toy.add(Variant("plain", returns(1)))
    with pytest.raises(ValueError, match=r"^variant: toy has no variant 'plan'; the nearest are plain$"):
        toy(CPU, variant="plan")


def test_a_variant_s_name_is_taken_once(toy) -> None:
    toy.add(Variant("a", returns(1)))
    with pytest.raises(ValueError, match=r"^variant: toy has a variant 'a' already$"):
        toy.add(Variant("a", returns(2)))
    assert toy(CPU) == 1


def test_a_requirement_must_exist() -> None:
    with pytest.raises(ValueError, match=r"^requires: no capability 'gluon_cdna'; the nearest are .*gluon_cdna4"):
        Variant("a", returns(1), requires=("gluon_cdna",))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        pytest.param(
            lambda: Variant("a", returns(1), requires="gluon"),
            TypeError,
            r"^requires: got str 'gluon', needs several names, as in requires=\['gluon'\]",
            id="requires as text",
        ),
        pytest.param(lambda: Variant("a", returns(1), requires=None), TypeError, "^requires: got NoneType", id="no requires"),
        pytest.param(lambda: Variant("a", returns(1), requires=[len]), TypeError, "^requires: got .* 'len'", id="no name"),
        pytest.param(lambda: Variant(returns, returns(1)), TypeError, "^name: got function 'returns', needs a str", id="name"),
        pytest.param(lambda: Variant("a", 3), TypeError, "^implementation: got int, needs a function, a Kernel", id="kind"),
        pytest.param(
            lambda: Variant("a", "package.module"),
            ValueError,
            "^implementation: got 'package.module', needs 'package",
            id="path",
        ),
        pytest.param(
            lambda: Variant("a", returns(1), accepts="no"), TypeError, "^accepts: got str 'no', needs a func", id="rule"
        ),
        pytest.param(
            lambda: Variant("a", returns(1), unless_named=False), TypeError, "^unless_named: got bool", id="other rule"
        ),
        pytest.param(
            lambda: Operation("b", offers="tuning"), TypeError, r"^offers: got str 'tuning', .*\['tuning'\]", id="offers"
        ),
        pytest.param(
            lambda: Operation("b", offers=["tunning"]), ValueError, "^offers: .*'tunning'; the nearest are tuning", id="part"
        ),
        pytest.param(lambda: Operation("b", example=3), TypeError, "^example: got int, needs a function", id="example"),
        pytest.param(lambda: Operation(returns), TypeError, "^name: got function 'returns', needs a str", id="operation"),
    ],
)
def test_what_cannot_be_meant_is_an_error_at_once(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_decorator_without_a_name_is_an_error_at_once(toy) -> None:
    with pytest.raises(TypeError, match=r"^name: got function 'run', needs a str, as in @operation.variant\('name'\)"):

        @toy.variant
        def run() -> None: ...

    assert not toy.variants


@pytest.mark.parametrize("rule", ["accepts", "unless_named"])
@pytest.mark.parametrize("returned", [True, False, "", 0, ("needs more",)], ids=repr)
def test_a_rule_answers_with_words_or_none(toy, rule: str, returned: object) -> None:
    toy.add(Variant("odd", returns(1), **{rule: lambda problem: returned}))
    toy.add(Variant("plain", returns(2)))
    with pytest.raises(TypeError, match=rf"^toy: {rule} of variant 'odd': returned .*, needs None where it takes the problem"):
        toy(CPU)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("near_variants.gluon:kernle", "variant 'near': near_variants.gluon has no 'kernle'; the nearest are kernel"),
        ("near_variants.glun:kernel", "variant 'near': near_variants has no module 'glun'; the nearest are gluon"),
    ],
)
def test_a_misspelt_path_is_an_error_that_names_the_nearest(toy, site, warned, path: str, message: str) -> None:
    site.package("near_variants")
    (site.folder / "near_variants" / "gluon.py").write_text("def kernel(): ...\n")
    toy.add(Variant("near", path))
    toy.add(Variant("plain", returns("plain")))
    with pytest.raises(ValueError, match=f"^{message}"):
        toy(CPU)
    assert not warned()


def test_a_module_that_needs_what_is_not_installed_is_no_misspelling(toy, site, warned) -> None:
    site.package("near_variants")
    (site.folder / "near_variants" / "gluon.py").write_text("import near_variants.of_another_library\n")
    toy.add(Variant("near", "near_variants.gluon:kernel"))
    toy.add(Variant("plain", returns("plain")))
    assert toy(CPU) == "plain"
    assert "does not load: ModuleNotFoundError" in warned()[0]


def test_an_operation_s_name_belongs_to_one_module(toy) -> None:
    elsewhere = {"__name__": "elsewhere", "Operation": Operation}
    with pytest.raises(ValueError, match=f"^name: operation 'toy' is defined by {__name__} already$"):
        exec("Operation('toy')", elsewhere)
    assert compat.operations()["toy"] is toy
    again: Operation[Problem] = Operation("toy")  # a module that is reloaded
    assert compat.operations()["toy"] is again


# Other distributions

ENTRY_POINT = "[capgate.operations]\n{name} = {module}:operation\n"


def test_operations_of_installed_distributions_are_found(site) -> None:
    """Nobody has imported them: a report lists what the machine has, not what happened to run."""
    site.package("their_kernels", "from capgate import compat\noperation = compat.Operation('theirs')\n")
    site.distribution("their-kernels", "1.0", ENTRY_POINT.format(name="theirs", module="their_kernels"))
    assert "their_kernels" not in sys.modules
    assert compat.operations()["theirs"].name == "theirs"


def test_a_switch_may_name_an_operation_that_is_not_imported_yet(toy, site) -> None:
    site.package("their_kernels", "from capgate import compat\noperation = compat.Operation('theirs')\n")
    site.distribution("their-kernels", "1.0", ENTRY_POINT.format(name="theirs", module="their_kernels"))
    toy.add(Variant("plain", returns(1)))
    with compat.override(variant="theirs=fast"):
        assert toy(CPU) == 1


def test_a_broken_entry_point_is_left_out_with_a_warning(toy, site, warned) -> None:
    site.package("their_kernels", "raise ImportError('libtheirs.so: undefined symbol')")
    site.distribution("their-kernels", "1.0", ENTRY_POINT.format(name="theirs", module="their_kernels"))
    found = compat.operations()
    assert found["toy"] is toy
    assert "theirs" not in found
    words = "operation theirs (their_kernels:operation) does not load: ImportError: libtheirs.so: undefined symbol"
    assert warned() == [words]


@pytest.mark.parametrize("error", ["SystemExit(4)", "type('PanicException', (BaseException,), {})('of Rust')"])
def test_an_entry_point_that_would_end_the_process_is_left_out(toy, site, warned, error: str) -> None:
    site.package("their_kernels", f"raise {error}")
    site.distribution("their-kernels", "1.0", ENTRY_POINT.format(name="theirs", module="their_kernels"))
    assert "theirs" not in compat.operations()
    assert len(warned()) == 1


def test_asking_for_operations_does_not_give_the_registry_away(toy) -> None:
    compat.operations().clear()
    assert compat.operations()["toy"] is toy


# The documented example, with bodies


def test_the_documented_example() -> None:
    torch = pytest.importorskip("torch")

    class Rows(NamedTuple):
        device: Any
        columns: int

    scale_rows: Operation[Rows] = compat.Operation("scale_rows")

    @scale_rows.variant("gluon", requires=("gluon_cdna4",))
    def _gluon(x: Any, factor: Any) -> Any:
        pytest.fail("there is no such GPU")

    @scale_rows.variant("torch")
    def _torch(x: Any, factor: Any) -> Any:
        return x * factor[:, None]

    x, factor = torch.ones(2, 3), torch.tensor([2.0, 3.0])
    y = scale_rows(Rows(device=x.device, columns=x.shape[1]), x, factor)
    assert y.tolist() == [[2.0] * 3, [3.0] * 3]
    assert scale_rows.explain(Rows(x.device, 3)).steps[0].reason.endswith("needs gfx950: found no GPU")
