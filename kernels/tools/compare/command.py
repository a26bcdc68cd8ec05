"""``capgate compare``: one table of runs of ``capgate bench`` on several stacks, or of formats, with every delta."""

import argparse

from capgate.compat import versions
from capgate.compat.command import CommandError, asking, printing
from capgate.compat.outputs import Outputs

from ..bench.plot import add_pictures
from . import tables as compare_show
from .stacks import Comparison, compare, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``capgate compare``."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="what capgate bench --json wrote, a file for each Triton")
    parser.add_argument(
        "--formats",
        action="store_true",
        help="instead of files: fp8, mxfp8 and mxfp4 of the same activations, their bytes read and top keys against float32's, "
        "computed on the CPU",
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--plot", metavar="FILE", help="draw every rate: .png, .svg, or both without a suffix")


def run(arguments: argparse.Namespace) -> int:
    """Compare the files that the parsed ``arguments`` name, or the formats."""
    outputs: Outputs[Comparison] = Outputs()
    with asking():
        if arguments.formats and (arguments.files or arguments.plot is not None):
            raise ValueError("--formats: computes its figures, and goes with no FILE and no --plot")
        if arguments.formats:
            return _compare_formats(arguments.markdown)
        if not arguments.files:
            raise ValueError("FILE: got none, needs what capgate bench --json wrote, or --formats")
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


def _compare_formats(markdown: bool) -> int:
    if versions.find("torch").text is None:
        raise CommandError("--formats: needs torch, which is not installed")
    from ..workloads.catalogue import ACCURACY
    from . import formats

    (workload,) = ACCURACY
    found, texts = list(formats.lines(formats.figures(workload))), formats.notes(workload)
    with printing():
        if markdown:
            print(compare_show.markdown_lines(formats.NAMES, found, texts))
        else:
            compare_show.show_lines([[name] for name in formats.NAMES], found, texts)
    return 0
