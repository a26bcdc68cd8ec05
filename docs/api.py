"""Make the API reference from the docstrings, as plain files: ``python docs/api.py FOLDER``.

Needs pdoc, and a torch and Triton 3.6 or newer, whose absence would leave functions and the Gluon surface out.
"""

import sys
import tempfile
import warnings
from pathlib import Path

import pdoc

from capgate import kernels

PUBLIC = (
    "capgate.compat",
    "capgate.compat.gluon",
    "capgate.compat.tl",
    "capgate.kernels",
    "capgate.kernels.dropin",
    "capgate.kernels.quantize",
)

LINES = ".pdoc .docstring p { white-space: pre-line; }"  # lines such as "needs : what follows" stay lines


def main(folder: str) -> None:
    warnings.simplefilter("error")  # a name without a home is a fault of the docstrings
    for name in kernels.__all__:  # which are imported when they are first asked for, and pdoc does not ask
        setattr(kernels, name, getattr(kernels, name))
    with tempfile.TemporaryDirectory() as templates:
        (Path(templates) / "custom.css").write_text(LINES)
        pdoc.render.configure(docformat="numpy", show_source=False, template_directory=Path(templates))
        pdoc.pdoc(*PUBLIC, output_directory=Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
