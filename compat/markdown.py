"""Tables in Markdown, whose cells are text: what is in a result may have been written by anybody."""

import re
from collections.abc import Iterable, Sequence

# What CommonMark and GitHub's tables give a meaning to inside a line, wherever it stands: escapes, code, emphasis, links, HTML,
# cells, strikethrough, entities, formulas, addresses. An underscore between letters and a lone colon have none.
_ACTIVE = re.compile(r"[\\`*\[\]<>|~&$@]|(?<![a-z0-9])_|_(?![a-z0-9])|:(?=//)|(?<=www)\.", re.IGNORECASE)


def escape(text: str) -> str:
    """A text of one line in the middle of a line of Markdown, so that it is read as it stands."""
    return _ACTIVE.sub(r"\\\g<0>", text)


def table(head: Sequence[str], rules: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already.

    rules : ``---`` for each column, ``---:`` for one of figures
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rules, *rows))
