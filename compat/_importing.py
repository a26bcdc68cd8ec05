"""What is done to a module as soon as somebody has imported it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Act = Callable[[ModuleType], None]


class AfterImport:
    """Calls a function for each of some modules: at once for those that are there, and for others when they have been imported.

    acts : by the module's full name
    """

    def __init__(self, acts: Mapping[str, Act]) -> None:
        self.acts = acts

    def __enter__(self) -> "AfterImport":
        for name, act in self.acts.items():
            if (module := sys.modules.get(name)) is not None:
                act(module)
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *error: object) -> None:
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The spec that the other finders have, with a loader of ours round theirs."""
        if fullname not in self.acts:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _ActingLoader(spec.loader, self.acts[fullname])
                return spec
        return None


class _ActingLoader(Loader):
    def __init__(self, loader: Loader, act: Act) -> None:
        self._loader = loader
        self._act = act

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._act(module)

    def __getattr__(self, name: str) -> Any:  # sources, resources and whatever else the other loader offers
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)
