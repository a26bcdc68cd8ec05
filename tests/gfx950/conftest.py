"""Makes this folder importable as ``gfx950``: pytest's importlib mode puts no folder on sys.path."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent

if "gfx950" not in sys.modules:
    package = ModuleType("gfx950")
    package.__path__ = [str(FOLDER)]
    sys.modules["gfx950"] = package
    # The formulas and the calls that all tests of the operations share.
    for name in ("judge", "paged", "selection"):
        spec = importlib.util.spec_from_file_location(f"gfx950.{name}", FOLDER.parent / "kernels" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[f"gfx950.{name}"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[f"gfx950.{name}"])
