"""compat has an inside and an outside: nobody but compat reads its private modules and names."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from capgate import compat

ROOT = Path(__file__).parents[2]
COMPAT = ROOT / "compat"
# Those that may look inside.
INSIDERS = (COMPAT, ROOT / "tests" / "compat")
OUTSIDE = sorted(
    file
    for folder in ("kernels", "tests", "docs")
    for file in (ROOT / folder).rglob("*.py")
    if not any(insider in file.parents for insider in INSIDERS)
)


def private(code: str) -> list[str]:
    """What ``code`` takes from inside of compat: private modules and names, imported, or read as attributes of its modules."""
    found, names = [], {}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("capgate.compat"):
            taken = {f"{node.module}.{alias.name}": alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "capgate":
            taken = {f"capgate.{alias.name}": alias.asname or alias.name for alias in node.names if alias.name == "compat"}
        elif isinstance(node, ast.Import):
            taken = {alias.name: alias.asname or "" for alias in node.names if alias.name.startswith("capgate.compat")}
        else:
            continue
        found += [path for path in taken if any(part.startswith("_") for part in path.split("."))]
        names |= {name: path for path, name in taken.items()}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and re.match("_[^_]", node.attr):
            found += [f"{names[node.value.id]}.{node.attr}"] if node.value.id in names else []
    return found


@pytest.mark.parametrize(
    "code",
    [
        "from capgate.compat._errors import summary",
        "from capgate.compat import _probes",
        "from capgate.compat import _probes as probes",
        "def late():\n    import capgate.compat._lookup",
        "from capgate.compat.offline.disassembly import _kind",
        "from capgate.compat import versions\nversions._failures",
        "from capgate import compat\ncompat._lookup.capabilities()",
    ],
)
def test_a_look_inside_is_seen(code: str) -> None:
    assert private(code)


def test_what_is_public_is_no_look_inside() -> None:
    assert not private(
        "from capgate import compat\nfrom capgate.compat import versions\ncompat.__file__, versions.find('triton')"
    )


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(ROOT)))
def test_nobody_else_looks_inside(file: Path) -> None:
    assert private(file.read_text()) == []


def test_the_pages_name_what_is_public() -> None:
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
            if not block.startswith("# in "):  # an edit: a piece of a file
                assert private(block) == [], page


def test_every_public_module_is_named_and_every_name_is_one() -> None:
    modules = {file.stem for file in COMPAT.glob("*.py")} | {file.parent.name for file in COMPAT.glob("*/__init__.py")}
    public = {name for name in modules if not name.startswith("_")}
    assert compat.__doc__ is not None
    table = re.split(r"^=[ =]+$", compat.__doc__, flags=re.MULTILINE)[2]
    named = set(re.findall(r"^(\w+) ", table, re.MULTILINE)) | set(re.findall(r"``(\w+)``:", table))
    assert named == public


def test_the_names_of_the_package_are_documented() -> None:
    for name in compat.__all__:
        assert inspect.getdoc(getattr(compat, name)), name
