"""Pictures of result files: lines against a size, both logarithmic, one panel beside another."""

import dataclasses
import io
import pathlib

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from evals.running.workdir import environment, write_atomically

LABELS = {
    "tokens": "tokens N",
    "landmarks": "landmarks S",
    "batch": "images per batch",
    "pixels": "side of the image, pixels",
    "median_ms": "milliseconds: median and quartiles",
}
_PEERS = ("torch", "Hugging Face")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One drawing: for each `arm` of the rows (dictionaries) a line of column y against column x.

    `y_label` is needed where y is none of `LABELS`. Rows without y are left out. Both axes are
    logarithmic, y unless `y_scale` says otherwise.
    """

    rows: list[dict]
    x: str
    y: str = "median_ms"
    title: str = ""
    y_label: str = ""
    y_scale: str = "log"

    def draw(self, axis, colours):
        """Draws the lines, of an arm in its colour; dashed where it is not JAX."""
        rows = [row for row in self.rows if row.get(self.y) is not None]
        for arm, colour in colours.items():
            mine = sorted((row for row in rows if row["arm"] == arm), key=lambda row: row[self.x])
            sizes = [row[self.x] for row in mine]
            style = "--" if _is_peer(arm) else "-"
            axis.plot(sizes, [row[self.y] for row in mine], f"o{style}", ms=4, color=colour)
            if self.y == "median_ms":
                low, high = ([row[f"quartile_{n}_ms"] for row in mine] for n in (1, 3))
                axis.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set_xscale("log")
        axis.set_yscale(self.y_scale)
        if self.y_scale == "log":
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=99))  # all of them
            axis.yaxis.set_minor_locator(NullLocator())
        ticks = sorted({row[self.x] for row in rows})
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks], rotation=30 * (len(ticks) > 4))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_xlabel(LABELS.get(self.x, self.x))
        axis.set_ylabel(LABELS.get(self.y, self.y_label))
        axis.set_title(self.title)
        axis.grid(alpha=0.3)


def write_plot(output, panels, names=None):
    """Writes the panels as PNG beside the result file `output`, with one legend.

    Args:
      output: the path of the CSV.
      panels: of type `Panel`; an arm has the same colour in all.
      names: what the legend says for an arm, where that is more than its name.
    """
    arms = dict.fromkeys(row["arm"] for panel in panels for row in panel.rows)
    palette = colormaps["tab10" if len(arms) <= 10 else "tab20"].colors
    colours = dict(zip(arms, palette))
    figure = Figure(figsize=(4.6 * len(panels) + 3.2, 4.2), layout="constrained")
    same_y = len({panel.y for panel in panels}) == 1
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=same_y)[0]
    for axis, panel in zip(axes, panels):
        panel.draw(axis, colours)
        if same_y:
            axis.label_outer()
    handles = [
        axes[0].plot([], [], "o--" if _is_peer(arm) else "o-", ms=4, color=colour)[0]
        for arm, colour in colours.items()
    ]
    labels = [(names or {}).get(arm, arm) for arm in arms]
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    made = environment()
    figure.suptitle(f"{made['device']}, jax {made['jax']}", fontsize=9, x=0.01, ha="left")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(pathlib.Path(output).with_suffix(".png"), content.getvalue())


def _is_peer(arm):
    return any(name in arm for name in _PEERS)
