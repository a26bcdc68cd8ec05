"""Text of others on a terminal: what it says can be read, and what it would do is not done."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capgate.compat.terminal import console, plain, plain_lines

ANY = st.text(st.characters(), max_size=40)  # lone surrogates too


@given(ANY)
def test_plain_text_prints_and_can_be_written(text: str) -> None:
    shown = plain(text)
    assert shown.isprintable()
    shown.encode()
    assert plain(shown) == shown


@given(ANY)
def test_nothing_but_the_unprintable_changes(text: str) -> None:
    kept = [letter for letter in text if letter.isprintable()]
    rest = iter(plain(text))
    assert all(letter in rest for letter in kept), "in their order"
    if len(kept) == len(text):
        assert plain(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Triton 3.6.0 ±1 %, größer, 三", "Triton 3.6.0 ±1 %, größer, 三"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x1b]8;;http://there\x07here", r"\x1b]8;;http://there\x07here"),
        ("\x9b2J", r"\x9b2J"),
        ("a\u202eb\u2066c", r"a\u202eb\u2066c"),
        ("one\ntwo\r\x85\u2028", r"one\ntwo\r\x85\u2028"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert plain(text) == shown


def test_lines_may_be_kept() -> None:
    assert plain_lines("first\n\x1b[31msecond") == "first\n\\x1b[31msecond"


@given(ANY)
def test_a_console_shows_strings_as_they_are(text: str) -> None:
    """Also where they look like markup, emoji codes or paths, in cells as elsewhere."""
    from rich.table import Table

    written = io.StringIO()
    made = console(file=written, force_terminal=True, width=4000, color_system="truecolor")
    shown = plain(text).strip()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row(shown)
    made.print(shown, soft_wrap=True)
    made.print(table)
    first, second = written.getvalue().removesuffix("\n").split("\n")
    assert first == shown
    assert second.strip() == shown


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[link=http://there]x[/]", ":smile:", "[/]", "\\[red]", "1.5 /usr/bin"])
def test_a_console_knows_no_markup(text: str) -> None:
    written = io.StringIO()
    console(file=written, force_terminal=True, color_system="truecolor").print(text)
    assert written.getvalue() == f"{text}\n"
