"""What a run of masking strategies shows: one table, `masking.json`, `masking.csv`, and remarks."""

import json
import pathlib

from evals.jobs.masking.job import evaluate_masking
from evals.jobs.strategies import MASSIVE, STRATEGIES
from evals.jobs.tables import ACCURACIES, csv_text, headline, markdown_table, values_of
from evals.running.workdir import write_atomically

# Columns of the table: heading, the point's task and field, and digits.
_COLUMNS = {
    "tokens masked": ("masking_effect", "tokens_masked", 1),
    **{heading: (*source, 1) for heading, source in ACCURACIES.items()},
    "embedding change": ("masking_effect", "embedding_change", 3),
    "images/s": (None, "images_per_second", 0),
}
_MANY = 1 / 4  # of the patches: massive tokens are a few


def masking_report(config, workdir) -> str:
    """Evaluates, writes the files of the run into `workdir`, and returns the text to print.

    Arguments and errors are those of `evals.jobs.masking.job.evaluate_masking`.
    """
    results = evaluate_masking(config, workdir)
    rows, said = masking_rows(results), remarks(results)
    results |= {"table": rows, "remarks": said}
    workdir = pathlib.Path(workdir)
    write_atomically(workdir / "masking.json", json.dumps(results, indent=2))
    write_atomically(workdir / "masking.csv", csv_text(rows, results))
    files = f"Written to {workdir}: masking.json, masking.csv"
    return "\n\n".join([headline(results), format_masking(rows), *said, files])


def masking_rows(results) -> list[dict]:
    """One row per strategy, the plain model first: the columns with data, means over tasks.

    An accuracy is followed by its difference to the plain model's.
    """
    rows = []
    for arm in dict.fromkeys(point["arm"] for point in results["points"]):
        points, row = [point for point in results["points"] if point["arm"] == arm], {}
        for heading, (task, field, _) in _COLUMNS.items():
            if not (values := values_of(points, task, field)):
                continue
            row[heading] = sum(values) / len(values)
            if rows and heading in ACCURACIES:
                row[f"{heading} difference"] = row[heading] - rows[0][heading]
        rows.append({"strategy": arm} | row)
    return rows


def format_masking(rows) -> str:
    """The rows as a markdown table; differences to the plain model in parentheses."""
    headings = [heading for heading in _COLUMNS if any(heading in row for row in rows)]
    cells = [[row["strategy"], *(_cell(heading, row) for heading in headings)] for row in rows]
    return markdown_table(["strategy", *headings], cells)


def remarks(results) -> list[str]:
    """What the sizes of the token sets tell about the table, a sentence or two on each."""
    strategies_of, effects = {}, {}
    for point in results["points"]:
        if "tokens_masked" in point:
            token_set = STRATEGIES[point["arm"]][0]
            strategies_of.setdefault(token_set, []).append(point["arm"])
            effects[token_set] = point
    detector, max_sinks = results["config"]["detector"], results["config"]["max_sinks"]
    said, limited = [], []
    for token_set, effect in effects.items():
        found, patches = effect["tokens_masked"], effect["num_patches"]
        name = f"{MASSIVE} (by {detector})" if token_set == MASSIVE else token_set
        if found == 0:
            said.append(
                f"{name}: none found in any of {effect['num_images']} images, so "
                f"{', '.join(strategies_of[token_set])} change nothing."
            )
        elif token_set == MASSIVE and found > _MANY * patches:
            said.append(
                f"{name}: {found:.0f} of {patches} patches on average, where a few are expected; "
                "this detector cannot tell them here."
            )
        elif token_set != MASSIVE and effect["most_tokens_masked"] == max_sinks:
            limited.append(token_set)
    if limited:
        said.append(
            f"{' and '.join(limited)}: the search ended at max_sinks = {max_sinks}; there may be "
            "more, and any patch passes for one where the class token (or the average query, "
            "without one) hardly attends to itself."
        )
    return said


def _cell(heading, row):
    if heading not in row:
        return ""
    digits = _COLUMNS[heading][2]
    text = f"{row[heading]:.{digits}f}"
    difference = row.get(f"{heading} difference")
    return text if difference is None else f"{text} ({difference:+.{digits}f})"
