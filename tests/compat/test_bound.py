"""Calls that repeat: what is kept of them, when, and what goes the long way.

Triton's part is played: a kernel that was compiled, its launcher in the shapes that Triton's releases have, and a driver.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

from capgate import compat  # noqa: E402
from capgate.compat import _bound as bound  # noqa: E402
from support.sample_kernels import copy_rows, softmax  # noqa: E402

pytestmark = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="kernels of the interpreter are never compiled")


class Start:
    """What starts a kernel: notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []

    def __call__(self, *given: Any) -> None:
        self.given.append(given)


class Run:
    """A launcher of Triton's: from the grid, the stream and the arguments to what starts the kernel."""

    def __init__(self, launch: Callable[..., None], scratch: int = 0) -> None:
        self.launch = launch
        self.global_scratch_size = scratch

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, metadata: Any, more: Any, *rest: Any) -> None:
        _, _, *arguments = rest  # the hooks
        self.launch(x, y, z, stream, function, *arguments)


def around(launcher: Callable[..., None], encoded: list[int]) -> Callable[..., None]:
    """What Triton has around what starts a kernel that takes tensor descriptors."""

    def inner(*given: Any) -> None:
        final: list[Any] = []
        for value in given:
            if hasattr(value, "base"):
                encoded.append(value.base.data_ptr())
                final += [("map", value.base.data_ptr()), *value.shape]
            else:
                final.append(value)
        launcher(*final)

    return inner


class Compiled:
    """A kernel that Triton has compiled and loaded."""

    function = 77
    packed_metadata = ("metadata",)

    def __init__(self, run: Any) -> None:
        self.run = run

    def launch_metadata(self, grid: tuple[int, ...], stream: int, *arguments: Any) -> None:
        return None


class Machine:
    """A GPU: kernels are launched on the long way by ``long``, of which it counts the calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.start, self.encoded, self.long = Start(), list[int](), 0
        self.device, self.stream = 0, 5
        self.compiled = Compiled(Run(self.start))
        driver = SimpleNamespace(get_current_device=lambda: self.device, get_current_stream=lambda device: self.stream)
        monkeypatch.setattr(triton.runtime.driver, "_active", driver, raising=False)
        if triton.runtime.driver.active is not driver:  # under the name that older releases have
            monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=driver))
        monkeypatch.setattr(compat.Launch, "__call__", lambda launch: self._launch())

    def _launch(self) -> Any:
        self.long += 1
        return self.compiled

    @property
    def short(self) -> int:
        """How many launches were kept ones."""
        return len(self.start.given)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


class Inputs(NamedTuple):
    x: Any
    rows: Any = None


def prepare(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    return compat.Launch(
        softmax, (inputs.x.shape[0],), (inputs.x, out, inputs.x.stride(0)), {"COLUMNS": columns, "num_warps": 4}
    )


def call(kernel: compat.Kernel[str], rows: int = 3, columns: int = 8, offset: int = 0) -> tuple[Any, Any]:
    memory = torch.zeros(rows * columns + offset)  # `reads` looks at it
    x, out = memory[offset:].view(rows, columns), torch.empty(rows, columns)
    kernel.launch("problem", Inputs(x), out, columns=columns)
    return x, out


def test_the_third_call_like_another_is_launched_with_its_own_addresses(machine: Machine) -> None:
    kernel = compat.Kernel(prepare)
    call(kernel)
    call(kernel)
    assert (machine.long, machine.short) == (2, 0)
    for _ in range(2):
        x, out = call(kernel)
        assert machine.long == 2
        assert machine.start.given[-1] == (3, 1, 1, 5, 77, x.data_ptr(), out.data_ptr(), 8, 8)


def omits(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    return compat.Launch(copy_rows, (1,), (inputs.x, out, columns), {"num_warps": 4})


def test_what_a_launch_leaves_out_is_the_kernels_default(machine: Machine) -> None:
    kernel = compat.Kernel(omits)
    for _ in range(3):
        x, out = call(kernel)
    assert (machine.long, machine.short) == (2, 1)
    assert machine.start.given[-1] == (1, 1, 1, 5, 77, x.data_ptr(), out.data_ptr(), 8, 24, 8)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"rows": 4}, id="shape"),
        pytest.param({"columns": 16}, id="option"),
        pytest.param({"offset": 1}, id="alignment"),
    ],
)
def test_another_call_is_not_taken_for_it(machine: Machine, other: dict[str, int]) -> None:
    kernel = compat.Kernel(prepare)
    for _ in range(3):
        call(kernel)
    before = machine.long, machine.short
    call(kernel, **other)
    assert (machine.long, machine.short) == (before[0] + 1, before[1])


def test_kept_launches_are_those_of_the_switches(machine: Machine) -> None:
    """What prepare makes may depend on a capability."""
    kernel = compat.Kernel(prepare)
    for _ in range(3):
        call(kernel)
    with compat.override(disable=["tma"]):
        call(kernel)
    assert (machine.long, machine.short) == (3, 1)
    call(kernel)
    assert (machine.long, machine.short) == (3, 2)


def test_a_multiple_of_16_bytes_further_on_is_a_call_like_it(machine: Machine) -> None:
    kernel = compat.Kernel(prepare)
    for _ in range(3):
        call(kernel)
    x, _ = call(kernel, offset=4)
    assert machine.start.given[-1][5] == x.data_ptr()


@pytest.mark.parametrize(
    "operand",
    [
        pytest.param(lambda: torch.empty(2, requires_grad=True), id="requires grad"),
        pytest.param(lambda: torch.nn.Parameter(torch.empty(2), requires_grad=False), id="a subclass"),
        pytest.param(lambda: [torch.empty(2)], id="a list"),
        pytest.param(lambda: torch.eye(2).to_sparse(), id="sparse"),
        pytest.param(lambda: torch.eye(2).to_mkldnn(), id="mkldnn"),
        pytest.param(
            lambda: torch.nested.nested_tensor([torch.empty(1)], layout=torch.strided),
            id="nested",
            marks=pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
        ),
    ],
)
def test_what_could_mean_anything_is_not_looked_at(operand: Callable[[], Any]) -> None:
    assert bound.look((torch.empty(2), 3, None, "text", torch.float32, (torch.empty(2),))) is not None
    assert bound.look((operand(),)) is None


def test_true_is_not_one() -> None:
    looked = [bound.look((torch.empty(0), value)) for value in (True, 1, 1.0)]
    assert len({look.facts for look in looked if look}) == 3


def test_a_storage_that_31_bits_cannot_count_is_another_call_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [torch.empty(size, dtype=torch.uint8, device="meta")[:8] for size in (2**31, 2**31 - 1)]
    monkeypatch.setattr(torch.version, "hip", "7.0")
    large, small = (bound.look((tensor,)) for tensor in tensors)
    assert large is not None
    assert small is not None
    assert large.facts != small.facts


def zeros(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    """A kernel that needs memory of zeros."""
    return compat.Launch(softmax, (1,), (torch.zeros_like(inputs.x), out, 1), {"COLUMNS": columns})


def reads(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    """A kernel whose grid is an operand's content."""
    return compat.Launch(softmax, (int(inputs.x[0, 0].clamp(1, 1).item()),), (inputs.x, out, 1), {"COLUMNS": columns})


def asks_the_device(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    """A kernel whose grid depends on where the operands are."""
    return compat.Launch(softmax, (2 if inputs.x.is_meta else 3,), (inputs.x, out, 1), {"COLUMNS": columns})


def takes_the_address(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    """A kernel that is given an address as a number."""
    return compat.Launch(softmax, (1,), (inputs.x, out, inputs.x.data_ptr()), {"COLUMNS": columns})


TABLE = torch.arange(4.0)


def has_a_table(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    """A kernel that reads a tensor which is no operand."""
    return compat.Launch(softmax, (1,), (TABLE, out, 1), {"COLUMNS": columns})


def no_kernel(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    """What is launched is no kernel of Triton's, an autotuner say."""
    return compat.Launch(SimpleNamespace(arg_names=[]), (1,), (), {})


@pytest.mark.parametrize("made", [zeros, reads, asks_the_device, takes_the_address, has_a_table, no_kernel])
def test_what_cannot_be_kept_is_prepared_each_time(machine: Machine, made: Any) -> None:
    kernel = compat.Kernel(made)
    for count in range(1, 5):
        call(kernel)
        assert (machine.long, machine.short) == (count, 0)


def test_a_launcher_that_allocates_is_not_kept(machine: Machine) -> None:
    machine.compiled.run = Run(machine.start, scratch=64)
    kernel = compat.Kernel(prepare)
    for _ in range(4):
        call(kernel)
    assert machine.short == 0


def two(problem: str, inputs: Inputs, out: Any, *, columns: int) -> tuple[compat.Launch, compat.Launch]:
    """Two launches, the first of which writes what the second reads."""
    between = torch.empty(64, dtype=torch.uint8, device=inputs.x.device)
    options = {"COLUMNS": columns}
    return (
        compat.Launch(softmax, (1,), (inputs.x, between[16:], 1), options),
        compat.Launch(softmax, (2,), (between[16:], out, 1), options),
    )


def test_what_lies_between_two_launches_is_new_in_each_call_and_one_for_both(machine: Machine) -> None:
    kernel = compat.Kernel(two)
    for _ in range(3):
        x, out = call(kernel)
    first, second = machine.start.given
    assert (first[5], second[6]) == (x.data_ptr(), out.data_ptr())
    assert first[6] == second[5]
    assert first[6] not in (x.data_ptr(), out.data_ptr())


def test_a_tensor_among_the_options_is_an_operand(machine: Machine) -> None:
    def prepare(problem: str, x: Any, *, scratch: Any) -> compat.Launch:
        return compat.Launch(softmax, (1,), (x, scratch[4:], 1), {"COLUMNS": 8})

    kernel = compat.Kernel(prepare)
    for _ in range(3):
        x, scratch = torch.empty(8), torch.empty(12)
        kernel.launch("problem", x, scratch=scratch)
    assert machine.start.given[-1][5:7] == (x.data_ptr(), scratch.data_ptr() + 16)


class Descriptor:
    """As much of a tensor descriptor as matters."""

    def __init__(self, base: Any, shape: list[int]) -> None:
        self.base, self.shape = base, shape


def described(problem: str, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
    return compat.Launch(softmax, (1,), (Descriptor(inputs.x, list(inputs.x.shape)), out, 1), {"COLUMNS": columns})


def test_a_tensor_map_is_encoded_once_for_each_address(machine: Machine) -> None:
    machine.compiled.run = Run(around(machine.start, machine.encoded))
    kernel = compat.Kernel(described)
    x, y, out = (torch.empty(3, 8) for _ in range(3))
    for tensor in (x, x, x, y, x, y):
        kernel.launch("problem", Inputs(tensor), out, columns=8)
    assert machine.encoded == [x.data_ptr(), y.data_ptr()]
    assert [given[5] for given in machine.start.given] == [("map", tensor.data_ptr()) for tensor in (x, y, x, y)]


def test_a_stream_is_one_of_each_call(machine: Machine) -> None:
    kernel = compat.Kernel(prepare)
    for _ in range(3):
        call(kernel)
    machine.stream = 6
    call(kernel)
    assert [given[3] for given in machine.start.given] == [5, 6]


def test_hooks_and_other_devices_take_the_long_way(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = compat.Kernel(prepare)
    for _ in range(3):
        call(kernel)
    assert (machine.long, machine.short) == (2, 1)
    machine.device = 1
    call(kernel)
    machine.device = 0
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    call(kernel)
    assert (machine.long, machine.short) == (4, 1)


def test_the_oldest_calls_are_forgotten(machine: Machine) -> None:
    kernel = compat.Kernel(prepare)
    for rows in range(1, bound.MOST + 10):
        call(kernel, rows)
    assert len(kernel._calls) == bound.MOST


def test_tensors_are_not_kept_alive(machine: Machine) -> None:
    import weakref

    kernel = compat.Kernel(prepare)
    for _ in range(3):
        x, out = call(kernel)
    alive = [weakref.ref(x), weakref.ref(out)]
    del x, out
    assert [ref() for ref in alive] == [None, None]


# --- a function's calls ---------------------------------------------------------------------------------------------------


class Problem(NamedTuple):
    device: Any


class Function:
    """A function over an operation: it counts the checks that its calls went through."""

    def __init__(self) -> None:
        self.operation = compat.Operation("scale_for_repeats")
        self.operation.add(compat.Variant("kernel", compat.Kernel(self._prepare)))
        self.operation.add(compat.Variant("plain", lambda inputs, out, *, columns: out.zero_(), last_resort=True))
        self.repeats = compat.Repeats(self.operation)
        self.checks = 0

    @staticmethod
    def _prepare(problem: Problem, inputs: Inputs, out: Any, *, columns: int) -> compat.Launch:
        return compat.Launch(softmax, (1,), (inputs.x, out, 1), {"COLUMNS": columns})

    def __call__(self, x: Any, out: Any, columns: Any = 8) -> Any:
        operands = Inputs(x), out
        found = self.repeats.call(operands, columns)
        if found is not None and self.repeats.launched(found, out) is not None:
            return out
        self.checks += 1
        problem = Problem(x.device)
        self.operation(problem, *operands, columns=columns)
        if found is not None:
            self.repeats.keep(found, lambda: problem, operands, None, columns=columns)
        return out


@pytest.fixture
def function(machine: Machine) -> Iterator[Function]:
    return Function()


def repeat(function: Function, times: int = 3) -> tuple[Any, Any]:
    for _ in range(times):
        x, out = torch.empty(3, 8), torch.empty(3, 8)
        function(x, out)
    return x, out


def test_a_function_checks_its_call_no_third_time(machine: Machine, function: Function) -> None:
    x, out = repeat(function, 6)
    assert function.checks == machine.long == 2
    assert machine.start.given[-1][5:7] == (x.data_ptr(), out.data_ptr())


def test_other_options_are_checked(machine: Machine, function: Function) -> None:
    x, out = repeat(function)
    function(x, out, columns=16)
    function(x, out, columns=True)
    assert function.checks == 4


def test_an_option_that_cannot_be_a_key_is_the_functions_to_refuse(function: Function) -> None:
    found = function.repeats.call((torch.empty(2),), ["no key"])
    assert found is not None
    assert function.repeats.launched(found, torch.empty(2)) is None


def test_memory_that_is_read_and_written_is_the_functions_to_refuse(machine: Machine, function: Function) -> None:
    repeat(function)
    memory = torch.empty(48)
    function(memory[:24].view(3, 8), memory[24:].view(3, 8))
    assert function.checks == 2
    function(memory[4:28].view(3, 8), memory[:24].view(3, 8))
    assert function.checks == 3


def test_switches_are_asked_in_every_call(machine: Machine, function: Function) -> None:
    x, out = repeat(function)
    with compat.override(variant={"scale_for_repeats": "plain"}):
        function(x, out.fill_(1))
    assert out.eq(0).all()
    function(x, out.fill_(1))
    assert out.eq(1).all()
    assert machine.short == 2


def test_other_capabilities_choose_anew(machine: Machine, function: Function, monkeypatch: pytest.MonkeyPatch) -> None:
    x, out = repeat(function)
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/another")
    function(x, out)
    assert function.checks == 3


def test_what_torch_traces_or_transforms_is_not_looked_at(function: Function) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    x, found = torch.empty(2, 3), []

    def look(row: Any) -> Any:
        found.append(function.repeats.call((x,)))
        return row

    with Mode():
        look(x)
    torch.func.vmap(look)(x)
    with torch.autograd.forward_ad.dual_level():
        look(x)
    assert found == [None, None, None]
    assert function.repeats.call((x,)) is not None


def test_a_call_that_is_never_kept_is_asked_about_once(function: Function) -> None:
    function.operation.variants.pop("kernel")
    x, asked = torch.empty(2), []
    for _ in range(5):
        found = function.repeats.call((x, x), "option")
        assert found is not None
        assert function.repeats.launched(found, x) is None
        function.repeats.keep(found, lambda: asked.append(1) or Problem(x.device), (x, x), None)
    assert len(asked) == 1


def test_a_new_result_is_written(machine: Machine, function: Function) -> None:
    x, out = repeat(function)
    found = function.repeats.call((Inputs(x), out), 8)
    assert found is not None
    without, new = found._replace(addresses=found.addresses[:-1]), torch.empty(3, 8)
    assert function.repeats.launched(without, None, lambda: new) is new
    assert machine.start.given[-1][6] == new.data_ptr()
