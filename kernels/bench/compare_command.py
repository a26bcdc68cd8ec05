"""``capgate compare``: one table of runs of ``capgate bench`` on several stacks, with every delta."""

import argparse
import sys
from importlib.util import find_spec

from . import compare_show
from .compare import compare, load
from .plot import files_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate compare``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="what capgate bench --json wrote, a file for each Triton")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--plot", metavar="FILE", help="draw every rate: .png, .svg, or both without a suffix")


def run(arguments: argparse.Namespace) -> int:
    """Compare the files that the parsed ``arguments`` name; returns 2 when they cannot be compared."""
    try:
        pictures = files_of(arguments.plot) if arguments.plot else []
        if pictures and find_spec("matplotlib") is None:
            raise ValueError("--plot: needs matplotlib (pip install capgate[plot])")
        comparison = compare(load(arguments.files))
        if pictures:
            compare_show.plot(comparison, pictures)
    except (ValueError, OSError) as error:
        print(f"capgate: {error}", file=sys.stderr)
        return 2
    if arguments.markdown:
        print(compare_show.markdown(comparison))
    else:
        compare_show.show(comparison)
    return 0
