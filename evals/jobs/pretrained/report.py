"""What a run on photographs shows: one table, `pretrained.json`, `pretrained.csv`, and pictures."""

import json
import pathlib

import numpy as np

from evals.jobs.arms import METHOD_NAMES, described, strength, without_seed
from evals.jobs.pretrained.job import compare_attentions
from evals.jobs.pretrained.pareto import draw_pareto
from evals.jobs.pretrained.pictures import draw_pictures
from evals.jobs.tables import csv_text, headline, markdown_table
from evals.running.workdir import write_atomically

# Columns with a number for each photograph: heading, the field of a point, decimals.
_OF_PHOTOGRAPHS = {
    "class token error": ("class_token_error", 3),
    "patch error": ("patch_error", 3),
    "map correlation": ("correlation", 3),
    "map IoU": ("intersection_over_union", 2),
}
_SPEEDS = {  # heading, the field of a point with a number for each arm, decimals
    "images/s": ("images_per_second", 2),
    "times exact": ("speedup", 2),
    "GMAC": ("giga_multiply_adds", 1),
    "compile s": ("compile_seconds", 1),
}
_LAYERS = "layer errors"


def pretrained_report(config, workdir) -> str:
    """Compares, writes the files of the run into `workdir`, and returns the text to print.

    Arguments and errors are those of `evals.jobs.pretrained.job.compare_attentions`.
    """
    results, workdir = compare_attentions(config, workdir), pathlib.Path(workdir)
    rows = table_rows(results)
    write_atomically(workdir / "pretrained.json", json.dumps(results | {"table": rows}, indent=2))
    write_atomically(workdir / "pretrained.csv", csv_text([_flat(row) for row in rows], results))
    pictures = [*draw_pareto(rows, workdir), *draw_pictures(config, workdir)]
    names = results["photographs"]
    said = (
        f"{len(names)} photographs (--config.half={config.half}): {', '.join(names)}. Errors are "
        "‖approximate − exact‖ / ‖exact‖ of the output, mean ± standard deviation over "
        "photographs; layer errors are of each block's attention on exact attention's inputs. S is "
        "the number of landmarks or, in percent, of the tokens that are kept; GMAC are billions of "
        "multiply-adds of the blocks, counted."
    )
    files = ", ".join(["pretrained.json", "pretrained.csv", *pictures])
    return "\n\n".join(
        [headline(results), format_table(rows), said, f"Written to {workdir}: {files}"]
    )


def table_rows(results) -> list[dict]:
    """One row per image size and attention; means and spreads over photographs and seeds.

    A spread is the standard deviation over photographs, of the means over seeds; None for one.
    """
    rows = []
    for size in results["config"]["image_sizes"]:
        points = [point for point in results["points"] if point["image_size"] == size]
        (speed,) = (point for point in points if point["task"] == "speed")
        groups = {}
        for arm in speed["images_per_second"]:
            groups.setdefault(without_seed(arm), []).append(arm)
        for name, arms in groups.items():
            row = {"px": size, "tokens": results["num_tokens"][str(size)], **described(name)}
            errors = [p for p in points if p["task"] == "errors" and p["arm"] in arms]
            row |= _over_photographs(errors) if errors else {}
            for heading, (field, _) in _SPEEDS.items():
                row[heading] = float(np.mean([speed[field][arm] for arm in arms]))
            rows.append(row)
    return rows


def format_table(rows) -> str:
    """The rows as a markdown table; spreads after ±."""
    headings = [h for h in (*_OF_PHOTOGRAPHS, _LAYERS, *_SPEEDS) if any(h in row for row in rows)]
    lines = []
    for row in rows:
        cells = [_cell(heading, row) for heading in headings]
        named = METHOD_NAMES[row["method"]], strength(row)
        lines.append([str(row["px"]), f"{row['tokens']:,}", *named, *cells])
    return markdown_table(["px", "tokens", "attention", "S", *headings], lines)


def _over_photographs(errors):
    """The columns of one attention's points, one per seed."""
    row = {}
    for heading, (field, _) in _OF_PHOTOGRAPHS.items():
        if field in errors[0]:
            values = np.mean([point[field] for point in errors], axis=0)
            row[heading] = float(values.mean())
            row[f"{heading} spread"] = float(values.std(ddof=1)) if len(values) > 1 else None
    if "layer_errors" in errors[0]:
        row[_LAYERS] = {
            layer: float(np.mean([point["layer_errors"][layer] for point in errors]))
            for layer in errors[0]["layer_errors"]
        }
    return row


def _cell(heading, row):
    if heading not in row:
        return ""
    if heading == _LAYERS:
        return " ".join(f"{error:.2f}" for error in row[heading].values())
    _, digits = (_OF_PHOTOGRAPHS | _SPEEDS)[heading]
    text, spread = f"{row[heading]:.{digits}f}", row.get(f"{heading} spread")
    return text if spread is None else f"{text} ± {spread:.{digits}f}"


def _flat(row):
    """The row with one column for each layer's error."""
    rest = {field: value for field, value in row.items() if field != _LAYERS}
    return rest | {f"layer {layer} error": x for layer, x in row.get(_LAYERS, {}).items()}
