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
    """What ``draw`` draws into a figure of a size in inches, as a file. Texts are text there: a dollar begins no formula.

    The colours are those of matplotlib's style for people who see few of them; letters are legible at half of the size.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["tableau-colorblind10", {"text.parse_math": False, "font.size": 14, "svg.hashsalt": "capgate"}]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        drawn = BytesIO()
        figure.savefig(drawn, format=kind, dpi=144)
    return drawn.getvalue()


def plot(kind: str, results: dict[str, Any]) -> bytes:
    """The picture; needs matplotlib.

    kind : "png" or "svg"

    A panel for each operation with clean_logits off and on; a bar for each variant in the order in which they were timed, and
    round those of a shape a frame: what its operations and bytes allow at the ceilings of the same run.
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
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=3, frameon=False, fontsize="small")
        figure.suptitle(f"{stack['device']}, Triton {stack['triton']}", x=0.01, ha="left")

    shapes = max(len({row["workload"] for row in rows if row["operation"] == operation}) for operation, _ in panels)
    return picture(kind, (max(9.0, 1.5 * shapes), 1 + 4.4 * len(panels)), draw)


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
        floors = {row["workload"]: form.rate({**row, "median_ms": row["floor_ms"]}) for row in rows}
        places = [shapes.index(shape) for shape in floors]
        frame = {"fill": False, "edgecolor": "0.45", "linewidth": 1.2, "zorder": 0}
        axes.bar(places, list(floors.values()), 0.9, label="what the shape allows", **frame)
        axes.axhline(form.ceiling(ceilings), color="black", linewidth=1.6, linestyle="--", label=form.words)
    axes.set_ylabel(form.unit)
    sizes = {row["workload"]: f"{_size(row['size'])}\n{row['heads']} heads" for row in rows}
    axes.set_xticks(range(len(shapes)), [f"{name.removeprefix('decode-')}\n{sizes[name]}" for name in shapes], fontsize="small")


def _size(text: str) -> str:
    """ "4096x4096" with room to read, and of three sizes the last one below the others."""
    first, *middle, last = text.split("x")
    return f"{' x '.join([first, *middle])}{chr(10) if middle else ' '}x {last}"
