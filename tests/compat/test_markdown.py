"""Markdown of text that anybody may have written: a reader of Markdown finds that text, and nothing else."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("markdown_it")  # rich brings it, but for the oldest that is taken

from markdown_it import MarkdownIt

from capgate.compat.markdown import escape, table
from capgate.compat.terminal import plain

READER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
ACTIVE = st.text(st.sampled_from("\\`*_{}[]()<>#+-.!|~&;:/\"'=$@ ab1\n\x1b"), max_size=30)
TEXTS = st.one_of(ACTIVE, st.text(max_size=30)).map(plain)


def read(text: str) -> str:
    """What a line of Markdown says; fails where there is anything but text in it."""
    said = ""
    for token in READER.parseInline(text)[0].children or []:
        assert token.type in ("text", "text_special"), token
        said += token.content
    return said


def cells(text: str) -> list[list[str]]:
    """The cells of the one table that a text is."""
    tokens = READER.parse(text)
    assert [token.type for token in tokens if token.level == 0] == ["table_open", "table_close"]
    rows: list[list[Any]] = []
    for token in tokens:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            assert all(child.type in ("text", "text_special") for child in token.children or []), token.children
            rows[-1].append("".join(child.content for child in token.children or []))
    return rows


@given(TEXTS)
@example("![image](http://there) <b>bold</b> &amp; `code` *em* __strong__ ~~gone~~ [link](x) <http://there> \\* a|b")
def test_a_reader_finds_the_text(text):
    assert read(f"x {escape(text)} x") == f"x {text} x"


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_a_reader_finds_every_cell(rows):
    made = table(["a", "b"], ["---", "---:"], [[escape(cell) for cell in row] for row in rows])
    head, *found = cells(made)
    assert head == ["a", "b"]
    assert found == [[cell.strip() for cell in row] for row in rows]


@pytest.mark.parametrize(
    "text", ["Triton 3.5.1, classic, clean on", "gluon_cdna4", "hip:gfx950", "8k1, total tok/s", "+2.14 % ±0.31 %"]
)
def test_what_means_nothing_there_stays_as_it_is(text):
    assert escape(text) == text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("https://there", r"https\://there"), ("www.there.org", r"www\.there.org"), ("a@there", r"a\@there"), ("$x$", r"\$x\$")],
)
def test_addresses_and_formulas_of_github_are_text(text, escaped):
    assert escape(text) == escaped
