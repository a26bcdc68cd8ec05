"""The release numbers inside a version's text, which vendors write as they like."""

import re
from functools import cache


@cache
def parse_release(text: str) -> tuple[int, ...]:
    """The release numbers in a version text, ``()`` when there are none.

    >>> parse_release("3.4.0+gitX+rocm7.1.0.gitX"), parse_release("3.6.0.dev1"), parse_release("nonsense")
    ((3, 4, 0), (3, 6, 0), ())
    """
    from packaging.version import InvalidVersion, Version  # 8 ms: not worth paying at import

    public = text.strip().partition("+")[0]
    try:
        return Version(public).release
    except InvalidVersion:
        leading = re.match(r"v?(\d{1,9}(?:\.\d{1,9})*)", public)
        return tuple(int(part) for part in leading[1].split(".")) if leading else ()
    except ValueError:  # more digits than Python turns into a number
        return ()
