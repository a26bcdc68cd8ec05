"""An import hook that replaces functions as soon as the module that offers them has been imported."""

import sys
from collections.abc import Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .families import DROPINS
from .replacing import replace_or_warn
from .sites import Target

_watched: set[str] = set()  # drop-ins


def watch(name: str) -> None:
    """Replace the drop-in's functions in every module of its that is imported from now on."""
    _watched.add(name)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def forget(name: str) -> None:
    """Undo :func:`watch`."""
    _watched.discard(name)
    if not _watched and _finder in sys.meta_path:
        sys.meta_path.remove(_finder)


class _Finder:
    """Finds the watched modules through the other finders, and puts a loader of ours round theirs."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        sites = (site.module for name in _watched for family in DROPINS[name] for site in family.sites)
        if fullname not in sites:
            return None
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                # It stays in the module's spec, because aiter runs a module again when it is imported by its old name.
                if spec.loader is not None and not isinstance(spec.loader, _ReplacingLoader):
                    spec.loader = _ReplacingLoader(spec.loader)
                return spec
        return None


class _ReplacingLoader(Loader):
    """A loader that replaces functions in the module that another loader has run."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        for name in sorted(_watched):
            sites = [(family, site) for family in DROPINS[name] for site in family.sites if site.module == module.__name__]
            if sites:
                replace_or_warn(name, [Target(family, site, module) for family, site in sites])

    def __getattr__(self, name: str) -> Any:  # sources, resources and whatever else the other loader offers
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._loader, name)


_finder = _Finder()
