"""A picture of a benchmark's results: operations a second of each branch and shape, and the ceiling."""

from pathlib import Path
from typing import Any

SUFFIXES = (".png", ".svg")


def files_of(name: str) -> list[Path]:
    """The files that ``--plot name`` writes: that one, or both kinds where the name has no suffix. ValueError for others."""
    path = Path(name)
    if not path.suffix:
        return [path.with_suffix(suffix) for suffix in SUFFIXES]
    if path.suffix not in SUFFIXES:
        raise ValueError(f"--plot: got {name!r}, needs a name that ends in {' or '.join(SUFFIXES)}, or has no suffix")
    return [path]


def plot(results: dict[str, Any], files: list[Path]) -> None:
    """Write the picture; needs matplotlib.

    Two panels, clean_logits off and on; a bar for each branch in the order in which they were timed, and above each shape the
    roofline: what its operations and bytes allow at the ceilings of the same run.
    """
    from matplotlib.figure import Figure

    rows, stack = results["rows"], results["stack"]
    shapes = list(dict.fromkeys(row["workload"] for row in rows))
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    modes = [clean for clean in (False, True) if any(row["clean_logits"] is clean for row in rows)]
    figure = Figure(figsize=(10, 1 + 3.2 * len(modes)), layout="constrained")
    panels = figure.subplots(len(modes), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    width = 0.8 / len(variants)
    for axes, clean in zip(panels, modes, strict=True):
        for number, variant in enumerate(variants):
            of_branch = [row for row in rows if row["variant"] == variant and row["clean_logits"] is clean]
            places = [shapes.index(row["workload"]) + (number + 0.5) * width - 0.4 for row in of_branch]
            axes.bar(places, [row["flops"] / row["median_ms"] / 1e9 for row in of_branch], width, label=variant)
        ceiling = results["ceilings"]
        if ceiling:
            axes.axhline(ceiling["flops"] / 1e12, color="black", linewidth=0.8, linestyle="--", label="fp8 matmul of 8192")
            floors = {row["workload"]: row["flops"] / row["floor_ms"] / 1e9 for row in rows if row["clean_logits"] is clean}
            centres = [shapes.index(shape) for shape in floors]
            edges = [[centre + side for centre in centres] for side in (-0.42, 0.42)]
            axes.hlines(list(floors.values()), *edges, color="tab:red", linewidth=1.2, label="roofline of the shape")
        axes.set_ylabel("TFLOP/s")
        axes.set_title(f"clean_logits={clean}", loc="left", fontsize="medium")
    panels[0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    panels[-1].set_xticks(range(len(shapes)), shapes)
    figure.suptitle(f"fp8_mqa_logits, {stack['device']}, Triton {stack['triton']}", x=0.01, ha="left")
    for file in files:
        figure.savefig(file, dpi=144)
