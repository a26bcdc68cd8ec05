"""Text for people: what other programs and other people's files say is shown as text, and steers no terminal."""

from typing import Any


def plain(text: str) -> str:
    """``text`` on one line, its unprintable characters as the escapes that ``repr`` gives them.

    Those are control characters, which begin a terminal's escape sequences, line breaks, marks that turn the direction of
    writing round, lone surrogates, and spaces other than the common one.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in text
    )


def plain_lines(text: str) -> str:
    """The same for a text whose line breaks are kept."""
    return "\n".join(map(plain, text.split("\n")))


def console(**options: Any) -> Any:
    """rich's Console, on which strings are text: no markup, no emoji codes, no guessed highlights.

    options : of rich's Console
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls it where it handles the error, and would end the process with status 1

    return PlainConsole(markup=False, emoji=False, highlight=False, **options)


def print_whole(console: Any, table: Any) -> None:
    """Print a table whole, wherever it is printed: a narrower console would cut figures short."""
    from rich.measure import Measurement

    console.width = max(console.width, Measurement.get(console, console.options.update(max_width=1000), table).maximum)
    console.print(table)
