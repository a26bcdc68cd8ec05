"""Notes the launches of this process: Triton's own functions are wrapped while a recorder is in place."""

import hashlib
import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import versions
from .._importing import AfterImport
from ..targets import Target, parse
from . import recordings
from .unrun import UnrunGpu
from .values import Described, UnrecordableError, describe

CONFIGS = ("chosen", "all")


class Recorder:
    """Notes every launch from its start to its end.

    file : written anew with each launch that is unlike those before, so that a run that breaks off leaves what it did
    run : whether launches are run; otherwise each is noted and answered with None, and its outputs stay as they were
    configs : of an autotuned kernel "chosen", the configuration that is launched in the end, or "all" that are tried, too.
        Where launches are not timed (in the interpreter, and where they are not run) the first that its pruning leaves is
        launched
    fake : whether tensors are torch's fake ones, which have shapes and a GPU's name without memory; then nothing can be run
    target : where launches are not run, the GPU that a kernel's launcher is told of
    root : the folder that files are named from

    A kernel that TorchInductor made is launched past Triton's functions, and is not noted.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        run: bool = True,
        fake: bool = False,
        configs: str = "chosen",
        target: Target | str = "cuda:90",
        root: str | Path | None = None,
    ) -> None:
        if configs not in CONFIGS:
            raise ValueError(f"configs: got {configs!r}, needs one of {', '.join(CONFIGS)}")
        self.target = parse(target) if isinstance(target, str) else target
        if not self.target.is_gpu:
            raise ValueError(f"target: got {self.target}, needs a GPU such as hip:gfx950 or cuda:90")
        self.file, self.run, self.configs = Path(file), run, configs
        self.root = Path(root or os.getcwd()).resolve()
        self._fakes: Any = None
        self._launches: dict[str, recordings.Launch] = {}
        self._lock = threading.Lock()
        self._trying = threading.local()
        self._originals: list[tuple[Any, str, Any]] = []
        acts: dict[str, Callable[[ModuleType], None]] = {
            "triton.runtime.jit": self._wrap_jit,
            "triton.runtime.interpreter": self._wrap_interpreter,
            "triton.runtime.autotuner": self._wrap_autotuner,
        }
        if fake and run:
            raise ValueError("fake: got True with launches that are run, needs run=False")
        self._unrun = UnrunGpu(self.target, fake)
        if not run:
            acts |= {
                "torch": self._replace_torch,
                "triton.runtime.driver": self._replace_driver,
                "triton.testing": self._replace_benchmark,
            }
        self._watch = AfterImport(acts)

    def __enter__(self) -> "Recorder":
        self._watch.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._watch.__exit__(*error)
        if self._fakes is not None:
            self._fakes.__exit__(None, None, None)
            self._fakes = None
        for holder, name, original in reversed(self._originals):
            setattr(holder, name, original)
        self._originals.clear()
        with self._lock:
            self._write()

    def finish(self) -> None:
        """Write how often launches came, at the end of a process; nothing where there was none."""
        with self._lock:
            if self._launches:
                self._write()

    def go_on_in(self, file: Path) -> None:
        """Note in another file what a forked process launches, which has this one's memory and not its file."""
        self.file, self._launches, self._lock = file, {}, threading.Lock()

    def recording(self) -> recordings.Recording:
        """What has been noted so far."""
        return {
            "format": recordings.FORMAT,
            "stack": {
                "triton": versions.find("triton").text,
                "torch": versions.find("torch").text,
                "how": "fake" if self._unrun.fake else self._how(),
                "target": str(self.target) if not self.run else None,
            },
            "launches": list(self._launches.values()),
        }

    def _how(self) -> str:
        if not self.run:
            return "not run"
        return "interpreter" if "triton.runtime.interpreter" in sys.modules and _interprets() else "run"

    def _write(self) -> None:
        recordings.write(self.file, self.recording())

    # --- Triton's functions -----------------------------------------------------------------------------------------------

    def _put(self, holder: Any, name: str, value: Any) -> None:
        self._originals.append((holder, name, getattr(holder, name)))
        setattr(holder, name, value)

    def _replace(self, holder: Any, name: str, make: Callable[[Any], Any]) -> None:
        self._put(holder, name, make(getattr(holder, name)))

    def _wrap_jit(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            def run(kernel: Any, /, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
                self._note(kernel.fn, kernel, args, kwargs, grid)
                return original(kernel, *args, grid=grid, warmup=warmup, **kwargs) if self.run else None

            return run

        self._replace(module.JITFunction, "run", make)

    def _wrap_interpreter(self, module: ModuleType) -> None:
        """The interpreter's launches; releases differ in the way to this class, and agree in it."""

        def make(original: Any) -> Any:
            def call(executor: Any, /, *args: Any, **kwargs: Any) -> Any:
                rewritten = module.InterpretedFunction.rewritten_fn
                function = next((fn for fn, made in rewritten.items() if made is executor.fn), executor.fn)
                options = {name: value for name, value in kwargs.items() if name not in ("grid", "warmup")}
                self._note(function, None, args, options, executor.grid)
                return original(executor, *args, **kwargs) if self.run else None

            return call

        self._replace(module.GridExecutor, "__call__", make)

    def _wrap_autotuner(self, module: ModuleType) -> None:
        def make(original: Any) -> Any:
            def bench(tuner: Any, /, *args: Any, config: Any, **meta: Any) -> Any:
                with self._trial():
                    if self.run and not _interprets():
                        return original(tuner, *args, config=config, **meta)
                    if self.configs == "all":
                        if config.pre_hook:  # which may give a descriptor its block
                            config.pre_hook({**tuner.nargs, **meta, **config.all_kwargs()})
                        with self._answered():
                            tuner.fn.run(*args, **{**meta, **config.all_kwargs()})
                return [1.0, 1.0, 1.0]  # all alike: the first is chosen

            return bench

        self._replace(module.Autotuner, "_bench", make)

    @contextmanager
    def _trial(self) -> Iterator[None]:
        before, self._trying.on = getattr(self._trying, "on", False), True
        try:
            yield
        finally:
            self._trying.on = before

    @contextmanager
    def _answered(self) -> Iterator[None]:
        before, self.run = self.run, False
        try:
            yield
        finally:
            self.run = before

    def _replace_torch(self, module: ModuleType) -> None:
        for name, answer in self._unrun.cuda().items():
            self._put(module.cuda, name, answer)
        if not self._unrun.fake:
            return
        # Torch asks torch.cuda, which answers of the GPU that is not here, whether it should do without a driver.
        mode = type("Fakes", (module._subclasses.FakeTensorMode,), {"avoid_device_init": True})
        self._fakes = mode(allow_non_fake_inputs=True)
        self._fakes.__enter__()

    def _replace_driver(self, module: ModuleType) -> None:
        self._put(module.driver, "_active", self._unrun)  # what its set_active sets, and nothing of it gives back

    def _replace_benchmark(self, module: ModuleType) -> None:
        def once(call: Callable[[], Any], *args: Any, **options: Any) -> Any:
            """In the place of Triton's: nothing runs, and there is nothing to time."""
            call()
            return 1.0 if options.get("quantiles") is None else [1.0] * len(options["quantiles"])

        self._put(module, "do_bench", once)

    # --- what is noted ----------------------------------------------------------------------------------------------------

    def _note(self, function: Any, kernel: Any, args: Any, kwargs: dict[str, Any], grid: Any) -> None:
        trial = getattr(self._trying, "on", False)
        if trial and self.configs != "all":
            return
        launch = self._launch(function, kernel, args, kwargs, grid, trial)
        key = recordings.identity(launch)
        with self._lock:
            known = self._launches.setdefault(key, launch)
            known["launches"] += 1
            if known is launch or (known["trial"] and not trial):
                known["trial"] = trial
                self._write()

    def _launch(
        self, function: Any, kernel: Any, args: Any, kwargs: dict[str, Any], grid: Any, trial: bool
    ) -> recordings.Launch:
        parameters = inspect.signature(function).parameters
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        bound = {name: given.get(name, defaults.get(name)) for name in parameters}
        gluon = bool(kernel is not None and getattr(kernel, "is_gluon", lambda: False)())
        launch: recordings.Launch = {
            "kernel": {**self._place(function), "source": _digest(function), "gluon": gluon},
            "arguments": {},
            "constants": [name for name, p in parameters.items() if "constexpr" in str(p.annotation)],
            "options": {},
            "grid": _grid(grid, {**bound, **given}),
            "launches": 0,
            "trial": trial,
            "unrecorded": None,
        }
        try:
            if "<locals>" in function.__qualname__:
                raise UnrecordableError("it is defined inside a function, where no other process finds it")
            for name, value in given.items():
                part = "arguments" if name in parameters else "options"
                launch[part][name] = self._describe(name, value)
        except UnrecordableError as error:
            launch["unrecorded"] = str(error)
        return launch

    def _describe(self, name: str, value: Any) -> Described:
        try:
            return describe(value, self._refer)
        except UnrecordableError as error:
            raise UnrecordableError(f"{name}: {error}") from error

    def _refer(self, value: Any) -> Described:
        function = value
        while hasattr(function, "fn"):
            function = function.fn
        if not inspect.isfunction(function):
            raise UnrecordableError(f"a {type(value).__module__}.{type(value).__qualname__}, which no file can hold")
        if "<locals>" in function.__qualname__:
            raise UnrecordableError(f"the function {function.__qualname__}, which is defined inside a function")
        return {"kind": "function", **self._place(function)}

    def _place(self, function: Any) -> dict[str, str]:
        """Where a function is defined: its module's name, its file from the root or from its package's folder, its own name."""
        file, module = Path(function.__code__.co_filename).resolve(), function.__module__
        if file.is_relative_to(self.root) and "site-packages" not in file.parts:
            named = file.relative_to(self.root)
        else:
            folder = recordings.import_folder(module, file)
            named = file.relative_to(folder) if folder else file
        return {"module": module, "file": str(named), "name": function.__qualname__}


def _grid(grid: Any, bound: dict[str, Any]) -> list[int] | None:
    """A launch's grid as it would be; None where its function fails on what is known here."""
    try:
        found = grid(bound) if callable(grid) else grid
        return [int(size) for size in found]
    except Exception:  # the user's function: Triton will say so, if it is asked to launch
        return None


def _digest(function: Any) -> str:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # made without a file
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _interprets() -> bool:
    knobs: Any = sys.modules.get("triton.knobs")
    return bool(knobs and knobs.runtime.interpret)
