"""The tuning tables: rows of one shape, with keywords and a reason, that need no Triton; and what is launched follows them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import capgate.kernels
from capgate import compat
from capgate.compat.tunings import Tunings
from capgate.kernels.common.rules import MAX_HEADS, padded_heads
from capgate.kernels.common.schedule.operation import CHUNK_KEYS
from capgate.kernels.common.tuning import ANY, Tuning
from capgate.kernels.fused_selection.tunings import MAX_WAVE_HEADS

SCORING = ("mqa_logits", "paged_mqa_logits", "mx_logits", "mx_paged_logits", "sparse_logits")
FOLDERS = (
    *SCORING,
    "key_selection",
    "fused_selection",
    "key_cache",
    "mx_quantization",
    "common.schedule",
)
TARGETS = {
    "classic": ("cuda:89", "cuda:90", "cuda:100", "cuda:103", "cuda:120", "hip:gfx942", "hip:gfx950", "hip:gfx1201"),
    "gluon_cdna3": ("hip:gfx942",),
    "gluon_cdna4": ("hip:gfx950",),
    "gluon_gfx1250": ("hip:gfx1250",),
    "gluon_hopper": ("cuda:90",),
}
TUNED = {variant: targets[1] if variant == "classic" else targets[0] for variant, targets in TARGETS.items()}
TUNED_PAGED = {variant: target for variant, target in TUNED.items() if variant != "gluon_gfx1250"}
pytestmark = pytest.mark.any_triton
each_folder = pytest.mark.parametrize("folder", FOLDERS)


def tables(folder: str) -> dict[str, dict[Any, Any]]:
    """Those of a folder: of logits all dictionaries of rows, of others those whose names say the variant."""
    module = import_module(f"capgate.kernels.{folder}.tunings")
    found = {name: value for name, value in vars(module).items() if isinstance(value, dict) and not name.startswith("_")}
    of_logits = {name for name, value in found.items() if all(isinstance(row, Tuning) for row in value.values())}
    return {name: value for name, value in found.items() if name in of_logits or name.startswith(("CLASSIC", "GLUON"))}


def tables_of(folder: str, variant: str) -> list[dict[Any, Any]]:
    """Those of one variant: the ones of classic go by target, whatever they are called."""
    if variant == "classic":
        return [table for table in tables(folder).values() if ANY in table]
    return [table for name, table in tables(folder).items() if name.startswith(variant.upper())]


def source(folder: str) -> str:
    return Path(*map(Path, capgate.kernels.__path__), *folder.split("."), "tunings.py").read_text()


@each_folder
def test_a_table_goes_by_target_or_by_padded_heads(folder: str) -> None:
    assert tables(folder)
    labels = {compat.capabilities(target).target.label for target in TARGETS["classic"]}
    for name, table in tables(folder).items():
        if not name.startswith("GLUON"):
            assert ANY in table
            assert set(table) - {ANY} <= labels
        else:  # of as many heads as the rule of the variant lets in
            fused = folder == "fused_selection"
            cached = name == "GLUON_HOPPER_PAGED"
            least, most = 36 if fused and name == "GLUON_HOPPER" else 1, MAX_WAVE_HEADS if fused and not cached else MAX_HEADS
            assert set(table) == {padded_heads(heads) for heads in range(least, most + 1)}


@each_folder
def test_rows_have_names_in_common(folder: str) -> None:
    """What a program takes at a time begins with ``block_``, and what other kernels have too is named as theirs."""
    own = {"held_entries", "planes", "requests", "shares"}
    for table in tables(folder).values():
        for row in table.values():
            blocks = {name for name in row._fields if name.startswith("block_")}
            assert blocks
            assert set(row._fields) - blocks - own <= set(Tuning._fields)
            assert isinstance(row, Tuning) == (folder in SCORING)
            hash(row)


@each_folder
def test_rows_are_written_with_keywords_and_a_reason(folder: str) -> None:
    text = source(folder)
    lines, tree = text.splitlines(), ast.parse(text)
    rows = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and any(word.arg == "num_warps" for word in node.keywords)
    ]
    assert rows
    assert not any(node.args for node in rows)
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict):
            for key in filter(None, node.value.keys):
                reason = lines[key.lineno - 2].strip()
                assert reason.startswith("# "), f"{folder}: {lines[key.lineno - 1]}"
                assert any(word in reason for word in ("easured", "ompiled", "Run on")), reason


def test_the_tables_need_no_triton() -> None:
    names = ", ".join(f"'capgate.kernels.{folder}.tunings'" for folder in FOLDERS)
    code = (
        "import sys; sys.modules['triton'] = None\n"
        f"from importlib import import_module\nfor name in ({names}): import_module(name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def operations(folder: str) -> list[compat.Operation[Any]]:
    module = import_module(f"capgate.kernels.{folder}.operation")
    return [value for value in vars(module).values() if isinstance(value, compat.Operation)]


def problems(folder: str, variant: str) -> Iterator[Any]:
    for operation, target in product(operations(folder), TARGETS[variant]):
        if variant not in operation.variants:
            continue
        assert operation.examples is not None
        mx = operation.name.startswith("mx_")
        for heads, dim, mode in product((1, 16, 20, 32, 48, 64, 100, 128), (64 if mx else 32, 128), operation.examples.modes):
            problem = operation.examples.problem(target, heads, dim, mode, None)
            if "paged" in folder:
                yield from (problem._replace(next_n=next_n) for next_n in (1, 2, 3, 8))
            else:
                yield problem


@pytest.mark.parametrize(
    ("folder", "variant"), [(folder, variant) for folder in SCORING for variant in TARGETS if tables_of(folder, variant)]
)
def test_a_problem_gets_whole_rows_within_its_tables_limits(folder: str, variant: str) -> None:
    tunings = import_module(f"capgate.kernels.{folder}.tunings")
    written = [row for table in tables_of(folder, variant) for row in table.values()]
    for problem in problems(folder, variant):
        tune, padded = getattr(tunings, variant)(problem), padded_heads(problem.heads)
        assert tune.rows >= 1
        assert tune.columns == tune.rows * padded
        assert any(tune.block_keys == row.block_keys and tune.columns <= max(row.columns, padded) for row in written)
        assert 1 <= tune.num_warps <= max(row.num_warps for row in written)
        assert CHUNK_KEYS % tune.block_keys == 0, "two workers would write one tile"
        if "paged" in folder:
            assert tune.rows < 2 * problem.next_n or tune.columns == 32, "more rows than a request has"


def test_a_row_is_cut_to_the_room_that_its_columns_have() -> None:
    row = Tuning(block_keys=64, columns=128, num_warps=4, num_stages=3, resident=2)
    assert (row.with_rows(8, 16).rows, row.with_rows(8, 16).columns) == (8, 128)
    assert (row.with_rows(8, 64).rows, row.with_rows(8, 64).columns) == (2, 128)
    assert (row.with_rows(1, 64).rows, row.with_rows(1, 64).columns) == (1, 64)


@pytest.mark.parametrize(
    ("operation", "variant", "target"),
    [
        *(("fp8_mqa_logits", variant, target) for variant, target in TUNED.items()),
        *(("fp8_paged_mqa_logits", variant, target) for variant, target in TUNED_PAGED.items()),
        ("mx_mqa_logits", "classic", "cuda:90"),
        ("mx_mqa_logits", "gluon_cdna4", "hip:gfx950"),
        ("mx_paged_mqa_logits", "classic", "cuda:90"),
        ("mx_paged_mqa_logits", "gluon_cdna4", "hip:gfx950"),
    ],
)
def test_what_a_file_loads_is_over_the_table(operation: str, variant: str, target: str) -> None:
    found = compat.operations()[operation]
    module = import_module(f"{(found.module or '').removesuffix('.operation')}.tunings")
    problem = found.example(target) if found.example else None
    row = getattr(module, variant)(problem)
    rows = [{"operation": operation, "variant": variant, "where": {"heads": 64}, "fields": {"num_stages": 7}}]
    with compat.override(tunings=Tunings("file", target, "a GPU", rows)):
        assert getattr(module, variant)(problem) == row._replace(num_stages=7)
        assert getattr(module, variant)(problem._replace(heads=32)).num_stages != 7
    assert getattr(module, variant)(problem) == row
