"""A picture of a benchmark's results: operations or bytes a second of each variant and shape, and the ceiling."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from capgate.compat.outputs import Outputs

from .tables import FORMS, Form

R = TypeVar("R")

SUFFIXES = (".png", ".svg")


def files_of(name: str) -> list[Path]:
    """The files that ``--plot name`` writes: that one, or both kinds where the name has no suffix. ValueError for others."""
    path = Path(name)
    if not path.name:
        raise ValueError(f"--plot: got {name!r}, needs a file's name")
    if not path.suffix:
        return [path.with_suffix(suffix) for suffix in SUFFIXES]
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--plot: got {name!r}, needs a name that ends in {' or '.join(SUFFIXES)}, or has no suffix")
    return [path]


def add_pictures(outputs: Outputs[R], name: str, draw: Callable[[str, R], bytes]) -> None:
    """Have the files written that ``--plot name`` asks for. ValueError where it names none, or matplotlib is missing."""
    files = files_of(name)
    if find_spec("matplotlib") is None:
        raise ValueError("--plot: needs matplotlib (pip install capgate[plot])")
    for file in files:
        outputs.add("--plot", file, partial(draw, file.suffix[1:]))


def picture(kind: str, size: tuple[float, float], draw: Callable[[Any], None]) -> bytes:
    """What ``draw`` draws into a figure of a size in inches, as a file. Texts are text there: a dollar begins no formula."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"text.parse_math": False}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        drawn = BytesIO()
        figure.savefig(drawn, format=kind, dpi=144)
    return drawn.getvalue()


def plot(kind: str, results: dict[str, Any]) -> bytes:
    """The picture; needs matplotlib.

    kind : "png" or "svg"

    A panel for each operation with clean_logits off and on; a bar for each variant in the order in which they were timed, and
    above each shape the roofline: what its operations and bytes allow at the ceilings of the same run.
    """
    rows, stack = results["rows"], results["stack"]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    colours = {variant: f"C{number}" for number, variant in enumerate(variants)}
    panels = list(dict.fromkeys((row["operation"], row["clean_logits"]) for row in rows))
    panels.sort(key=lambda panel: (list(FORMS).index(panel[0]), panel[1]))

    def draw(figure: Any) -> None:
        for axes, (operation, clean) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            shown = [row for row in rows if (row["operation"], row["clean_logits"]) == (operation, clean)]
            _panel(axes, FORMS[operation], shown, colours, results["ceilings"])
            axes.set_title(f"{operation}, clean_logits={clean}", loc="left", fontsize="medium")
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
        figure.suptitle(f"{stack['device']}, Triton {stack['triton']}", x=0.01, ha="left")

    return picture(kind, (10, 1 + 3.2 * len(panels)), draw)


def _panel(
    axes: Any, form: Form, rows: list[dict[str, Any]], colours: dict[str, str], ceilings: dict[str, float] | None
) -> None:
    shapes = list(dict.fromkeys(row["workload"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    width = 0.8 / len(variants)
    for number, variant in enumerate(variants):
        of_variant = [row for row in rows if row["variant"] == variant]
        places = [shapes.index(row["workload"]) + (number + 0.5) * width - 0.4 for row in of_variant]
        axes.bar(places, [form.rate(row) for row in of_variant], width, label=variant, color=colours[variant])
    if ceilings:
        axes.axhline(form.ceiling(ceilings), color="black", linewidth=0.8, linestyle="--", label=form.words)
        floors = {row["workload"]: form.rate({**row, "median_ms": row["floor_ms"]}) for row in rows}
        edges = [[shapes.index(shape) + side for shape in floors] for side in (-0.42, 0.42)]
        axes.hlines(list(floors.values()), *edges, color="tab:red", linewidth=1.2, label="roofline of the shape")
    axes.set_ylabel(form.unit)
    names = [shape.removeprefix("decode-") for shape in shapes]
    axes.set_xticks(range(len(shapes)), names, rotation=20 if max(map(len, names)) > 6 else 0)
