"""A recorded function, found again: in its module, or in those statements of its file that it needs.

A script cannot be imported: that would run it. Of its file only the imports are run, and the definitions and assignments that
the function's code names, and those that they name. As in the run, what stands beside it goes before others of its names.
"""

import ast
import os
import symtable
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from .recordings import import_folder


class MissingSourceError(Exception):
    """Why a function cannot be found again, in words."""


class Sources:
    """Finds functions, each module or file read once.

    root : the folder that files are named from
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._sliced: dict[tuple[Path, str], ModuleType] = {}
        self._own = {module.partition(".")[0] for module in sys.modules}  # what this process itself runs on
        self._first: str | None = None  # the folder that goes before the others of sys.path

    def find(self, module: str, file: str, name: str) -> Any:
        """What the name means there: a kernel as its decorators left it. MissingSourceError where there is none.

        Whatever importing the module raises is raised: a library that does not import is what a user would meet.
        """
        found: Any = self._module(module, Path(file), name)
        for part in name.split("."):
            if not hasattr(found, part):
                raise MissingSourceError(f"{found.__name__} has no {part}")
            found = getattr(found, part)
        return found

    def _module(self, module: str, named: Path, name: str) -> ModuleType:
        file = self._root / named
        if module != "__main__":
            folder = import_folder(module, named)
            self._enter(self._root / folder if folder and file.is_file() else None)
            try:
                return import_module(module)
            except ModuleNotFoundError as error:
                if error.name is None or not f"{module}.".startswith(f"{error.name}.") or not file.is_file():
                    raise
        if not file.is_file():
            raise MissingSourceError(f"no file {file}")
        key = (file, name.partition(".")[0])
        if key not in self._sliced:
            self._enter(file.parent)
            self._sliced[key] = _sliced(*key)
        return self._sliced[key]

    def _enter(self, folder: Path | None) -> None:
        """Import as Python does beside a script of that folder, or of none; modules give way to what goes before them now."""
        first = str(folder) if folder else None
        if first == self._first:
            return
        if self._first in sys.path:
            sys.path.remove(self._first)
            if self._first not in sys.path:  # what was imported from there may still import its neighbours
                sys.path.append(self._first)
        if first is not None:
            sys.path.insert(0, first)
        self._first = first
        for name in {module.partition(".")[0] for module in sys.modules} - self._own:
            here, there = PathFinder.find_spec(name), getattr(sys.modules.get(name), "__file__", None)
            if here and here.origin and there and os.path.realpath(here.origin) != os.path.realpath(there):
                for module in [module for module in sys.modules if f"{module}.".startswith(f"{name}.")]:
                    del sys.modules[module]


def kernel_of(found: Any) -> Any:
    """Triton's own function inside autotuners, heuristics and other wrappers: the one round a plain function."""
    while hasattr(getattr(found, "fn", None), "fn"):
        found = found.fn
    if not hasattr(found, "warmup"):
        raise MissingSourceError(f"a {type(found).__module__}.{type(found).__qualname__} has no kernel of Triton's in it")
    return found


def _sliced(file: Path, name: str) -> ModuleType:
    """A module of the statements of a file that a top-level name needs."""
    tree = ast.parse(file.read_bytes(), str(file))
    module = ModuleType(f"capgate_recorded_{len(sys.modules)}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where decorators and dataclasses look
    for statement in needed(tree.body, name):
        exec(compile(ast.Module([statement], []), str(file), "exec"), vars(module))
    return module


def needed(body: list[ast.stmt], name: str) -> list[ast.stmt]:
    """The top-level statements that bind a name, with all that they name in turn, in their order."""
    binds = [_bound(statement) for statement in body]
    chosen: set[int] = set()
    wanted, seen = [name], {name}
    while wanted:
        one = wanted.pop()
        for number, names in enumerate(binds):
            if one in names and number not in chosen:
                chosen.add(number)
                new = _named(body[number]) - seen
                seen |= new
                wanted += new
    return [
        statement
        for number, statement in enumerate(body)
        if number in chosen or (isinstance(statement, ast.ImportFrom) and statement.module == "__future__")
    ]


def _named(statement: ast.stmt) -> set[str]:
    """The names of the module that a statement reads, also inside functions, whose own variables are none of them."""

    def read(table: symtable.SymbolTable) -> set[str]:
        top = table.get_type() == "module"
        names = {one.get_name() for one in table.get_symbols() if one.is_referenced() and (top or one.is_global())}
        return names.union(*map(read, table.get_children()))

    return read(symtable.symtable(ast.unparse(statement), "statement", "exec"))


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement binds at the top level, inside an if or a try too."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    if isinstance(statement, ast.If | ast.Try | ast.With):
        if isinstance(statement, ast.If) and _is_main(statement.test):
            return set()
        return set().union(*map(_bound, _inner(statement)))
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return set()


def _inner(statement: ast.stmt) -> Iterable[ast.stmt]:
    for field in ("body", "orelse", "finalbody"):
        yield from getattr(statement, field, ())
    for handler in getattr(statement, "handlers", ()):
        yield from handler.body


def _is_main(test: ast.expr) -> bool:
    return any(isinstance(node, ast.Name) and node.id == "__name__" for node in ast.walk(test))
