"""What a run of questions shows: a table, `results.json`, `results.csv`, and files for servers."""

import json
import pathlib

import numpy as np

from evals.jobs.arms import without_seed
from evals.jobs.tables import csv_text, headline, markdown_table
from evals.jobs.vqa.job import answer_questions
from evals.jobs.vqa.picture import answer_examples, draw_answers
from evals.running.workdir import write_atomically
from evals.tasks.answers.benchmarks import BENCHMARKS, DIGITS

PICTURE = "answers.png"
_IDENTICAL = "as exact %"
_SPEEDS = {  # heading: field of the speeds, what one of it is, digits
    "first token ms": ("first_token_ms", 1, 1),
    "next token ms": ("next_token_ms", 1, 2),
    "cache MB": ("cache_bytes", 1e6, 1),
}


def vqa_report(config, workdir) -> str:
    """Answers, writes the files of the run into `workdir`, and returns the text to print.

    Arguments and errors are those of `evals.jobs.vqa.job.answer_questions`.
    """
    results = answer_questions(config, workdir)
    workdir, rows = pathlib.Path(workdir), table_rows(results)
    write_atomically(workdir / "results.json", json.dumps(results | {"table": rows}, indent=2))
    write_atomically(workdir / "results.csv", csv_text(rows, results))
    if config.dataset == DIGITS:
        draw_answers(*answer_examples(config, results, workdir), workdir / PICTURE)
    count = results["points"][0]["num_questions"]
    said = (
        f"{count:,} questions of {config.dataset}; {_IDENTICAL}: answers that are exact "
        f"attention's, letter for letter; times are of a batch of {config.batch_size}, images and "
        "prompt first; MB of keys and values that a prompt leaves."
    )
    picture = f", {PICTURE}" if config.dataset == DIGITS else ""
    written = f"Written to {workdir}: results.json, results.csv, predictions/{picture}"
    return "\n\n".join([headline(results), format_table(rows), said, written])


def table_rows(results) -> list[dict]:
    """One row per size of images and arm: `attention`, `S`, and in each column with data the mean
    over seeds; `px`, where sizes were set.

    Under a score's name with `spread` behind it is the standard deviation; None for one seed.
    """
    speeds = {p.get("pixels"): p for p in results["points"] if p["task"] == "speed"}
    rows, groups = [], {}
    for point in results["points"]:
        if point["task"] != "speed":
            groups.setdefault((point.get("pixels"), without_seed(point["arm"])), []).append(point)
    for (pixels, _), points in groups.items():
        told, names = results["arms"][points[0]["arm"]], [point["arm"] for point in points]
        speed = speeds.get(pixels)
        row = {} if pixels is None else {"px": pixels}
        row |= {"attention": told["label"], "S": told["strength"]}
        for heading, values in _scores(points, results["config"]["dataset"]).items():
            row[heading] = float(np.mean(values))
            several = len(values) > 1
            row[f"{heading} spread"] = float(np.std(values, ddof=1)) if several else None
        for heading, (field, unit, _) in _SPEEDS.items() if speed else ():
            if found := [speed[field][name] / unit for name in names if name in speed[field]]:
                row[heading] = float(np.mean(found))
        rows.append(row)
    return rows


def format_table(rows) -> str:
    """The rows as a markdown table; spreads after ±."""
    named = [name for name in ("px", "attention", "S") if name in rows[0]]
    headings = dict.fromkeys(heading for row in rows for heading in row)
    headings = [h for h in headings if h not in named and not h.endswith(" spread")]
    lines = [
        [*(str(row[name]) for name in named), *(_cell(row, h) for h in headings)] for row in rows
    ]
    return markdown_table([*named, *headings], lines)


def _scores(points, dataset):
    """Values of one arm's points by heading: the score, its parts, what is as exact's."""
    columns = {}
    if "score" in points[0]:
        columns[BENCHMARKS[dataset].metric] = [point["score"] for point in points]
        for name in ("precision", "recall", "f1", "yes_ratio"):
            if name in points[0]:
                columns[f"{name.replace('_', ' ')} %"] = [point[name] for point in points]
        for kind in points[0].get("by_kind", ()):
            columns[f"{kind} %"] = [point["by_kind"][kind] for point in points]
    return columns | {_IDENTICAL: [point["identical"] for point in points]}


def _cell(row, heading):
    if heading not in row:
        return ""
    digits = _SPEEDS[heading][2] if heading in _SPEEDS else 1
    text, spread = f"{row[heading]:.{digits}f}", row.get(f"{heading} spread")
    return text if spread is None else f"{text} ± {spread:.{digits}f}"
