"""Error against speed, measured and counted: one plot for pooled outputs, one for dense ones."""

import pathlib

import matplotlib
import numpy as np

from evals.jobs.arms import COLOURS, METHOD_NAMES, strength
from evals.running.workdir import save_figure

matplotlib.use("Agg")  # before pyplot: no screen
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

_OUTPUTS = {"pooled": "class token error", "dense": "patch error"}
_COSTS = {"images/s": "images/s of the whole model", "GMAC": "GMAC counted, of the blocks"}
_MARKERS = "osD^vP*X"  # by image size


def draw_pareto(rows, workdir) -> list[str]:
    """Draws the rows of a table for each output that has errors; the names of the PNGs.

    The cheaper and the more accurate, the further to the lower right. Exact attention, which has no
    error, is a line at its cost for each image size; to the left of it nothing is gained.
    """
    written = []
    for output, heading in _OUTPUTS.items():
        if any(heading in row for row in rows):
            written.append(f"pareto-{output}.png")
            _draw(rows, heading, pathlib.Path(workdir) / written[-1])
    return written


def _draw(rows, heading, file):
    sizes = list(dict.fromkeys(row["px"] for row in rows))
    figure, axes = plt.subplots(
        1, len(_COSTS), figsize=(13, 5.2), sharey=True, layout="constrained"
    )
    for axis, (cost, label) in zip(axes, _COSTS.items()):
        for size, marker in zip(sizes, _MARKERS * len(sizes)):
            of_size = [row for row in rows if row["px"] == size]
            for row in of_size:
                if row["method"] == "exact":
                    axis.axvline(row[cost], color=COLOURS["exact"], linestyle="--", linewidth=1)
                    place = dict(xycoords=("data", "axes fraction"), rotation=90, fontsize=8)
                    axis.annotate(
                        f"exact, {size} px ", (row[cost], 1), va="top", ha="right", **place
                    )
            for method, colour in COLOURS.items():
                _draw_method(axis, of_size, method, (cost, heading), marker, colour)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.margins(x=0.12)
        axis.grid(alpha=0.3, which="both")
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_locator(LogLocator(subs=(1, 2, 5)))
            one.set_major_formatter(StrMethodFormatter("{x:g}"))
            one.set_minor_formatter(NullFormatter())
    axes[list(_COSTS).index("GMAC")].invert_xaxis()  # cheaper is to the right, as in the other
    axes[0].set_ylabel(heading)
    shown = {row["method"] for row in rows if heading in row}
    keys = [
        Line2D([], [], color=colour, marker="o", label=METHOD_NAMES[method])
        for method, colour in COLOURS.items()
        if method in shown
    ]
    keys += [
        Line2D([], [], color="#777777", marker=marker, linestyle="", label=f"{size} px")
        for size, marker in zip(sizes, _MARKERS * len(sizes))
    ]
    figure.legend(handles=keys, loc="outside right upper", fontsize=9)
    save_figure(figure, file, bbox_inches="tight")
    plt.close(figure)


def _draw_method(axis, rows, method, columns, marker, colour):
    """The strengths of one method, joined by a line, and each named."""
    mine = [row for row in rows if row["method"] == method and columns[1] in row]
    mine = [row for row in mine if row[columns[1]] > 0]  # on axes of logarithms
    points = np.array([[row[column] for column in columns] for row in mine])
    if not len(points):
        return
    axis.plot(*points.T, color=colour, marker=marker, markersize=5, linewidth=1)
    for row, point in zip(mine, points):
        place = dict(xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour)
        axis.annotate(strength(row), point, **place)
