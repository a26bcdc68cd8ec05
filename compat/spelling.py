"""What helps after a misspelt name."""

from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The words that help after a misspelt name."""
    from difflib import get_close_matches

    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"the nearest are {', '.join(close)}"
    return f"known are {', '.join(known) or 'none'}"
