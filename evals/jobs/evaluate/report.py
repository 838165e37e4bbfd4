"""What a run shows: one table, `results.json`, `results.csv`, and two plots."""

import json
import pathlib

import matplotlib
import numpy as np

from evals.jobs.arms import COLOURS, METHOD_NAMES, described, strength, without_seed
from evals.jobs.evaluate.job import evaluate, landmark_examples
from evals.jobs.evaluate.segmentation_picture import draw_segmentation, segmentation_examples
from evals.jobs.tables import ACCURACIES, csv_text, headline, markdown_table, values_of
from evals.running.workdir import save_figure, write_atomically

matplotlib.use("Agg")  # before pyplot: no screen
import matplotlib.pyplot as plt

_COLUMNS = ACCURACIES | {
    "embedding error": ("fidelity", "embedding_error"),
    "layer errors": ("fidelity", "layer_errors"),
    "images/s": (None, "images_per_second"),
    "compile s": (None, "compile_seconds"),
}


def evaluation_report(config, workdir) -> str:
    """Evaluates, writes the files of the run into `workdir`, and returns the text to print.

    Arguments and errors are those of `evals.jobs.evaluate.job.evaluate`.
    """
    results = evaluate(config, workdir)
    if any(point["task"] == "segmentation" for point in results["points"]):
        examples = segmentation_examples(config, workdir)
        draw_segmentation(*examples, pathlib.Path(workdir, "segmentation.png"))
    return write_report(results, workdir, landmarks=landmark_examples(config))


def table_rows(results) -> list[dict]:
    """One row per attention: method, strength and, for every column with data, mean and spread over
    seeds.

    A spread is the standard deviation, None for a single run.
    """
    rows, points_of = [], {}
    for point in results["points"]:
        points_of.setdefault(without_seed(point["arm"]), []).append(point)
    for arm, points in points_of.items():
        row = {"attention": arm, **described(arm)}
        for heading, (task, field) in _COLUMNS.items():
            values = values_of(points, task, field)
            if not values:
                continue
            if heading == "layer errors":
                row[heading] = {
                    layer: float(np.mean([errors[layer] for errors in values]))
                    for layer in values[0]
                }
                continue
            row[heading] = float(sum(values) if heading == "compile s" else np.mean(values))
            seeded = task is not None and len(values) > 1
            row[f"{heading} spread"] = float(np.std(values, ddof=1)) if seeded else None
        rows.append(row)
    return rows


def format_table(rows) -> str:
    """The rows as a markdown table; spreads after ±."""
    headings = [h for h in _COLUMNS if any(h in row for row in rows)]
    lines = []
    for row in rows:
        cells = [_cell(heading, row) for heading in headings]
        lines.append([METHOD_NAMES[row["method"]], strength(row), *cells])
    return markdown_table(["attention", "S", *headings], lines)


def write_report(results, workdir, *, landmarks) -> str:
    """Writes the files of a run into `workdir` and returns the text to print.

    Args:
      results: what `evals.jobs.evaluate.job.evaluate` returned.
      workdir: the folder.
      landmarks: what `evals.jobs.evaluate.job.landmark_examples` returned.
    """
    workdir = pathlib.Path(workdir)
    rows = table_rows(results)
    write_atomically(workdir / "results.json", json.dumps(results | {"table": rows}, indent=2))
    write_atomically(workdir / "results.csv", csv_text([_flat(row) for row in rows], results))
    plot_quality(rows, workdir / "quality.png")
    if landmarks[1]:
        draw_landmarks(*landmarks, workdir / "landmarks.png")
    return "\n".join(
        [
            headline(results),
            "",
            format_table(rows),
            "",
            results["advice"],
            "",
            f"Written to {workdir}: results.json, results.csv, "
            + ", ".join(sorted(file.name for file in workdir.glob("*.png"))),
        ]
    )


def plot_quality(rows, file):
    """Accuracy and error against the number of landmarks; what has none, as lines."""
    panels = [h for h in (*ACCURACIES, "embedding error") if any(h in row for row in rows)]
    size = (4 * len(panels), 3.7)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axis, heading in zip(axes[0], panels):
        for method, colour in COLOURS.items():
            mine = [row for row in rows if row["method"] == method and heading in row]
            mine = [row for row in mine if row["num_landmarks"]]
            if not mine:
                continue
            x = [row["num_landmarks"] for row in mine]
            y = np.array([row[heading] for row in mine])
            spread = np.array([row[f"{heading} spread"] or 0 for row in mine])
            axis.plot(x, y, "o-", color=colour, label=METHOD_NAMES[method])
            axis.fill_between(x, y - spread, y + spread, color=colour, alpha=0.2, linewidth=0)
        for row in rows:
            if row["num_landmarks"] is None and heading in row:
                label = f"{METHOD_NAMES[row['method']]} {strength(row)}".strip()
                options = dict(color=COLOURS[row["method"]], linestyle="--", label=label)
                axis.axhline(row[heading], **options)
        sizes = sorted({row["num_landmarks"] for row in rows if row["num_landmarks"]})
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel("landmarks S")
        axis.set_title(heading)
        axis.margins(y=0.15)
        if heading == "embedding error":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=len(panels), frameon=False)
    _save(figure, file)


def draw_landmarks(images, landmarks, file):
    """Draws landmark patches over images.

    Args:
      images: `[M, height, width, 3]`, uint8 or floats in 0..1.
      landmarks: by row title, `(y, x)` patch centres in pixels of each image: M arrays `[S, 2]`.
      file: where the PNG goes.
    """
    figure, axes = plt.subplots(
        len(landmarks),
        len(images),
        figsize=(2 * len(images), 2.1 * len(landmarks)),
        squeeze=False,
        layout="constrained",
    )
    for row, (title, points_of_image) in zip(axes, landmarks.items()):
        row[0].set_ylabel(title)
        for axis, image, points in zip(row, images, points_of_image):
            axis.imshow(image, interpolation="nearest")
            axis.scatter(
                points[:, 1], points[:, 0], s=22, c="#ff3b30", edgecolors="white", linewidths=0.8
            )
            axis.set_xticks([])
            axis.set_yticks([])
    _save(figure, file)


def _cell(heading, row):
    if heading not in row:
        return ""
    if heading == "layer errors":
        return " ".join(f"{error:.2f}" for error in row[heading].values())
    digits = {"embedding error": 3, "images/s": 0, "compile s": 1}.get(heading, 1)
    text = f"{row[heading]:.{digits}f}"
    spread = row[f"{heading} spread"]
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def _flat(row):
    """The row with one column for each layer's error."""
    errors = row.get("layer errors", {})
    rest = {field: value for field, value in row.items() if field != "layer errors"}
    return rest | {f"layer {layer} error": error for layer, error in errors.items()}


def _save(figure, file):
    save_figure(figure, file)
    plt.close(figure)
