"""What a sweep shows: one table, `sweep.json`, `sweep.csv`, and quality against speed as a plot."""

import json
import pathlib

import matplotlib
import numpy as np

from evals.jobs.arms import kind_of
from evals.jobs.sweep.job import DIMENSIONS, sweep
from evals.jobs.tables import ACCURACIES, csv_text, headline, markdown_table, values_of
from evals.running.workdir import save_figure, write_atomically

matplotlib.use("Agg")  # before pyplot: no screen
import matplotlib.pyplot as plt

_SPEED, _SPEEDUP = "images/s", "times exact"
_QUALITIES = ACCURACIES | {"embedding error": ("fidelity", "embedding_error")}
_SMALLER_IS_BETTER = ("embedding error",)
_ON_FRONT = " *"  # beside a number in the table


def sweep_report(config, workdir) -> str:
    """Runs the sweep, writes its files into `workdir`, and returns the text to print.

    Arguments and errors are those of `evals.jobs.sweep.job.sweep`.
    """
    results = sweep(config, workdir)
    rows = sweep_rows(results)
    workdir = pathlib.Path(workdir)
    write_atomically(workdir / "sweep.json", json.dumps(results | {"table": rows}, indent=2))
    write_atomically(workdir / "sweep.csv", csv_text(rows, results))
    plot_fronts(rows, workdir / "sweep.png")
    said = [
        f"{_ON_FRONT.strip()} on the Pareto front: nothing faster is as good. Speeds are of the "
        "image encoder, all settings in turns."
    ]
    reasons = list(results["left_out"].values())
    said += [f"left out, {reasons.count(why)} settings: {why}" for why in dict.fromkeys(reasons)]
    files = f"Written to {workdir}: sweep.json, sweep.csv, sweep.png"
    return "\n\n".join([headline(results), format_sweep(rows), *said, files])


def sweep_rows(results) -> list[dict]:
    """One row per setting, means over seeds: its choices, qualities, speed, and `front`.

    `front` names the qualities in which nothing at least as fast is better.
    """
    speed = [point for point in results["points"] if point["task"] == "speed"]
    per_second, speedup = (
        {name: value for point in speed for name, value in point[field].items()}
        for field in ("images_per_second", "speedup")
    )
    groups = {}
    for name, settings in results["settings"].items():
        key = tuple((field, value) for field, value in settings.items() if field != "seed")
        groups.setdefault(key, []).append(name)
    rows = []
    for key, names in groups.items():
        points = [point for point in results["points"] if point["arm"] in names]
        row = {"attention": kind_of(dict(key).get("method", "exact")), **dict(key)}
        for heading, source in _QUALITIES.items():
            if values := values_of(points, *source):
                row[heading] = float(np.mean(values))
        timed = [name for name in names if name in per_second]  # memory may have run out
        if timed:
            row[_SPEED] = float(np.mean([per_second[name] for name in timed]))
            row[_SPEEDUP] = float(np.mean([speedup[name] for name in timed]))
        rows.append(row)
    qualities = [heading for heading in _QUALITIES if any(heading in row for row in rows)]
    fronts = {heading: _front(rows, heading) for heading in qualities}
    return [
        row | {"front": ", ".join(heading for heading in qualities if index in fronts[heading])}
        for index, row in enumerate(rows)
    ]


def pareto_front(speed, quality) -> np.ndarray:
    """bool `[M]`: no other point is at least as fast and as good, and better in one; NaN never is.

    Args:
      speed, quality: `[M]`, more is better.
    """
    faster = speed[None] >= speed[:, None]
    better = quality[None] >= quality[:, None]
    strictly = (speed[None] > speed[:, None]) | (quality[None] > quality[:, None])
    return ~np.any(faster & better & strictly, axis=1) & ~np.isnan(speed) & ~np.isnan(quality)


def format_sweep(rows) -> str:
    """The rows as a markdown table: the choices that differ, the qualities, and the speed."""
    choices = _choices_that_differ(rows)
    numbers = [h for h in [*_QUALITIES, _SPEED, _SPEEDUP] if any(h in row for row in rows)]
    lines = [
        [row["attention"], *(_word(row.get(c)) for c in choices), *(_cell(row, h) for h in numbers)]
        for row in rows
    ]
    return markdown_table(["attention", *choices, *numbers], lines)


def plot_fronts(rows, file):
    """Each quality against the speed; the Pareto front as steps, its points named below."""
    qualities = [heading for heading in _QUALITIES if any(heading in row for row in rows)]
    size = (4.6 * len(qualities), 4.2)
    figure, axes = plt.subplots(1, len(qualities), figsize=size, squeeze=False)
    for axis, heading in zip(axes[0], qualities):
        speed, quality = _coordinates(rows, heading)
        if heading in _SMALLER_IS_BETTER:
            axis.invert_yaxis()
        shown, front = np.abs(quality), _front(rows, heading)
        exact = np.array([row["attention"] == "exact" for row in rows])
        axis.scatter(speed[~exact], shown[~exact], s=26, color="#1b6ca8", label="approximate")
        axis.scatter(speed[exact], shown[exact], s=40, color="#444444", marker="s", label="exact")
        options = dict(color="#d1751f", zorder=0, drawstyle="steps-pre", label="Pareto front")
        axis.plot(speed[front], shown[front], **options)
        for number, index in enumerate(front, start=1):
            point = speed[index], shown[index]
            place = dict(xytext=(5, 4), textcoords="offset points", fontsize=9)
            axis.annotate(str(number), point, **place)
        lines = [f"{number}  {_words(rows, index)}" for number, index in enumerate(front, start=1)]
        axis.text(
            0,
            -0.16,
            "\n".join(lines),
            transform=axis.transAxes,
            va="top",
            fontsize=8,
            clip_on=False,
        )
        axis.set_xlabel(f"{_SPEED}, image encoder")
        axis.set_title(heading)
        axis.margins(0.1)
        axis.grid(alpha=0.3)
    axes[0][0].legend(loc="best")
    save_figure(figure, file, dpi=110, bbox_inches="tight")
    plt.close(figure)


def _front(rows, heading):
    """Indices of the rows on the front, the slowest first."""
    speed, quality = _coordinates(rows, heading)
    front = np.flatnonzero(pareto_front(speed, quality))
    return front[np.argsort(speed[front])]


def _words(rows, index):
    row, choices = rows[index], _choices_that_differ(rows)
    said = [f"{choice} {_word(row[choice])}" for choice in choices if choice in row]
    return ", ".join([row["attention"], *said])


def _choices_that_differ(rows):
    return [c for c in DIMENSIONS.values() if len({row[c] for row in rows if c in row}) > 1]


def _coordinates(rows, heading):
    """Speed and quality `[M]`, more is better; NaN where there is none."""
    sign = -1 if heading in _SMALLER_IS_BETTER else 1
    speed = np.array([row.get(_SPEED, np.nan) for row in rows])
    return speed, np.array([sign * row.get(heading, np.nan) for row in rows])


def _word(choice):
    return {None: "", True: "yes", False: "no"}.get(choice, str(choice))


def _cell(row, heading):
    if heading not in row:
        return ""
    digits = {_SPEED: 0, _SPEEDUP: 2, "embedding error": 3}.get(heading, 1)
    mark = _ON_FRONT if heading in row["front"].split(", ") else ""
    return f"{row[heading]:.{digits}f}{mark}"
