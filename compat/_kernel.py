"""What a variant with a GPU kernel offers: how a call becomes launches, and what else can be asked about it.

    kernel = compat.Kernel(prepare, tuning=tuning)        # in the variant's module, named as "package.module:kernel"

A variant may be a plain function instead; then there is nothing to compile ahead of time, and nothing else to ask.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Concatenate, Generic, NamedTuple, TypeVar

from . import _switches
from ._binding import bind
from ._bound import Bound, Look, limit, look

_NEW, _SEEN = "new", "seen"  # what is remembered of a call before its launches are kept

P = TypeVar("P", bound=Hashable)

OFFERS = ("tuning", "workers")  # what a Kernel may offer besides ``prepare``


class Launch(NamedTuple):
    """A kernel with its grid, its arguments in order, and its constants and launch options by name.

    Calling it launches. An offline compile prepares it from meta tensors and hands the parts to the compiler.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def __call__(self) -> Any:
        """Launch; returns what Triton says that it launched, a compiled kernel."""
        return self.kernel[self.grid](*self.arguments, **self.keywords)


class Kernel(Generic[P]):
    """A variant's kernel. What it may offer besides ``prepare`` is None where it does not.

    prepare : ``prepare(problem, *operands, **options)`` makes the :class:`Launch` of one call, or several that run in order;
        the problem says on which device or target, and the operands may be meta tensors
    tuning : ``tuning(problem)`` is how the work of a problem is cut, a NamedTuple
    workers : ``workers(problem)`` is how many programs should share the work of a problem, where a schedule gives it out

    Raises TypeError for what cannot be called.
    """

    def __init__(
        self,
        prepare: "Callable[Concatenate[P, ...], Launch | Sequence[Launch]]",  # a string: Python 3.10 takes no ... there
        *,
        tuning: Callable[[P], Any] | None = None,
        workers: Callable[[P], int] | None = None,
    ) -> None:
        for name, offered in {"prepare": prepare, "tuning": tuning, "workers": workers}.items():
            if not callable(offered) and (offered is not None or name == "prepare"):
                raise TypeError(f"{name}: got {type(offered).__name__}, needs a function")
        self._prepare = prepare
        self._calls: dict[Any, Bound | str | None] = {}  # None for one whose launches cannot be kept
        self.tuning = tuning
        self.workers = workers

    def prepare(self, problem: P, *operands: Any, **options: Any) -> tuple[Launch, ...]:
        """The launches of one call, in order. Raises TypeError where the variant's function returns anything else."""
        made = self._prepare(problem, *operands, **options)
        launches = (made,) if isinstance(made, Launch) else made
        if not isinstance(launches, Sequence) or not all(isinstance(launch, Launch) for launch in launches):
            where = f"{self._prepare.__module__}.{self._prepare.__qualname__}"
            raise TypeError(f"prepare: {where} returned {type(made).__name__}, needs a Launch or a sequence of them")
        return tuple(launches)

    def launch(self, problem: P, *operands: Any, **options: Any) -> None:
        """Prepare one call and launch it; of one that comes again with operands that lie alike, the launches are kept."""
        looked, key = self._look(problem, operands, options)
        before = self._calls.get(key, _NEW)
        if isinstance(before, Bound) and looked and before(looked.addresses):
            return
        launches = self.prepare(problem, *operands, **options)
        compiled = [launch() for launch in launches]
        if looked is None or before not in (_NEW, _SEEN):
            return
        kept: Bound | str | None = _SEEN  # a call that never comes again is not worth preparing twice
        if before == _SEEN:
            kept = bind(partial(self.prepare, problem), operands, options, looked.addresses, launches, compiled)
        limit(self._calls)
        self._calls[key] = kept

    def kept(self, problem: P, *operands: Any, **options: Any) -> Bound | None:
        """The kept launches of calls like this one; None where there are none."""
        kept = self._calls.get(self._look(problem, operands, options)[1])
        return kept if isinstance(kept, Bound) else None

    def _look(self, problem: P, operands: tuple[Any, ...], options: dict[str, Any]) -> tuple[Look | None, Any]:
        looked = look((*operands, *options.values()))
        # A prepare may ask for capabilities, and switches change those.
        return looked, looked and (problem, looked.facts, _switches.current().key, *options)


class ExampleCall(NamedTuple):
    """A call for a problem: meta tensors in order, options by name.

    products : multiply-adds that the matrix units spend on one key for one row, heads padded; 1 where there are none
    number : which of the call's launches is meant
    """

    operands: tuple[Any, ...]
    options: dict[str, Any]
    products: int = 1
    number: int = 0


class Examples(NamedTuple):
    """What an offline compile asks of an operation.

    problem : ``problem(device, heads, dim, mode, dtype)``: a problem of these sizes, ``dtype`` None for what the device reads;
        ValueError for what does not exist
    call : ``call(problem)``: a call of that problem
    modes : the output modes that are compiled unless others are asked for
    """

    problem: Callable[[Any, int, int, str, str | None], Any]
    call: Callable[[Any], ExampleCall]
    modes: tuple[str, ...]
