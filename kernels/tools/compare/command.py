"""``capgate compare``: one table of runs of ``capgate bench`` on several stacks, with every delta."""

import argparse

from capgate.compat.command import asking
from capgate.compat.outputs import Outputs

from ..bench.plot import add_pictures
from . import tables as compare_show
from .stacks import Comparison, compare, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate compare``."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="what capgate bench --json wrote, a file for each Triton")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--plot", metavar="FILE", help="draw every rate: .png, .svg, or both without a suffix")


def run(arguments: argparse.Namespace) -> int:
    """Compare the files that the parsed ``arguments`` name."""
    outputs: Outputs[Comparison] = Outputs()
    with asking():
        if arguments.plot is not None:
            add_pictures(outputs, arguments.plot, compare_show.plot)
        comparison = compare(load(arguments.files))
        if arguments.plot is not None:
            compare_show.rates(comparison)
    with outputs.written(comparison):
        if arguments.markdown:
            print(compare_show.markdown(comparison))
        else:
            compare_show.show(comparison)
    return 0
