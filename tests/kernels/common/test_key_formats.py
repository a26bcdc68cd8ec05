"""The declared formats and layouts: each byte lies where its engine's formula says, and the tables name what exists."""

from pathlib import Path

import pytest

from capgate.kernels.common.cache import LAYOUTS as OF_FP8
from capgate.kernels.common.key_formats import FORMATS, LAYOUTS, layouts_of
from capgate.kernels.common.mx_rules import RULES, carry_of
from support import mx

pytestmark = pytest.mark.any_triton


@pytest.mark.parametrize(("name", "layout"), mx.LAYOUTS, ids=["-".join(kind) for kind in mx.LAYOUTS])
def test_each_byte_lies_where_the_engine_s_formula_says(name: str, layout: str) -> None:
    row, at = FORMATS[name], LAYOUTS[layout]
    assert tuple(dim for dim in row.dims if dim in at.dims) == mx.LAYOUTS[name, layout]
    for dim in mx.LAYOUTS[name, layout]:
        key_bytes = row.key_bytes(dim)
        assert key_bytes == mx.key_bytes(name, dim)
        for block in (64,) if layout == "flydsl" else (32, 64, 128):
            values = {(t, b): at.value_byte(t, b, key_bytes, block) for t in range(block) for b in range(key_bytes)}
            scales = {(t, g): at.scale_byte(t, g, block) for t in range(block) for g in range(4)}
            assert values == {(t, b): mx.value_place(layout, t, b, key_bytes, block) for t, b in values}
            assert scales == {(t, g): mx.scale_place(layout, t, g, block) for t, g in scales}
            assert sorted(values.values()) == list(range(block * key_bytes))
            assert sorted(scales.values()) == list(range(block * 4))


def test_formats_layouts_and_rules_go_together() -> None:
    declared = {(name, layout) for name, row in FORMATS.items() if row.grouped for layout in layouts_of(name)}
    assert declared == set(mx.LAYOUTS)
    assert {(name, rule) for name, rules in RULES.items() for rule in rules} == set(mx.PRODUCERS)
    assert OF_FP8 == {"flat": 1, "preshuffled": 16}
    assert {name: row.largest for name, row in FORMATS.items() if row.grouped} == {name: mx.SIZES[name][-1] for name in RULES}


@pytest.mark.parametrize("name", ["mxfp4", "mxfp8"])
def test_the_carry_rounds_a_magnitude_s_exponent_up_where_it_must(name: str) -> None:
    """Of every fraction next to the largest value's, and of a few others; the exact ratio is the judge."""
    carry, exponent = carry_of(FORMATS[name].largest)
    edge = 0x7FFFFF - carry
    for biased in (1, 100, 254):
        for fraction in (0, 1, edge - 1, edge, edge + 1, 0x7FFFFF):
            largest = (1 + fraction / 2**23) * 2.0 ** (biased - 127)
            byte = ((biased << 23 | fraction) + carry >> 23) - exponent
            assert largest <= FORMATS[name].largest * 2.0 ** (byte - 127)
            assert largest > FORMATS[name].largest * 2.0 ** (byte - 128)


def test_the_page_has_every_combination_and_every_rule() -> None:
    page = (Path(__file__).parents[3] / "docs" / "key-formats.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| `")]
    assert {(row[0].split("`")[1], row[0].split("`")[3]) for row in rows if row[0].count("`") == 4} == set(mx.LAYOUTS)
    least = {(row[0].strip("`"), row[1].strip("`")): row[2] for row in rows if len(row) == 6 and "^-" in row[2]}
    declared = {(name, rule): row.least_byte - 127 for name, rules in RULES.items() for rule, row in rules.items()}
    assert {key: int(words.split()[0].removeprefix("2^")) for key, words in least.items()} == declared
    sizes = {row[0].strip("`"): (int(row[3]), tuple(map(int, row[4].split(", ")))) for row in rows if row[3].isdigit()}
    assert sizes == {name: (row.key_bytes(128) + 4, row.dims) for name, row in FORMATS.items()}
