"""What the tables of runs share: columns of the evals, markdown for people, csv for programs."""

import csv
import io

# Columns of a table: heading, and the point's task and field.
ACCURACIES = {
    "zero-shot top-1 %": ("zero_shot", "top1"),
    "k-NN top-1 %": ("knn", "top1"),
    "linear probe top-1 %": ("linear_probe", "top1"),
    "own head top-1 %": ("classifier", "top1"),
    "image→text R@1 %": ("retrieval", "image_to_text_r1"),
    "text→image R@1 %": ("retrieval", "text_to_image_r1"),
    "mIoU %": ("segmentation", "miou"),
    "pixel accuracy %": ("segmentation", "pixel_accuracy"),
}


def values_of(points, task, field) -> list:
    """The field in those points that have it and are of the task (None: of any)."""
    return [point[field] for point in points if field in point and task in (None, point["task"])]


def headline(results) -> str:
    """Model, device and version, for the line above a table."""
    environment = results["environment"]
    return f"model: {results['model']}; {environment['device']}, jax {environment['jax']}"


def markdown_table(headings, rows) -> str:
    """A markdown table of texts, numbers from the second column on."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def csv_text(rows, results) -> str:
    """The rows, dictionaries, as csv: each with the run's model, command, device and versions."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    fixed = {"model": results["model"], **results["environment"]}
    out = io.StringIO()
    writer = csv.DictWriter(out, [*fields, *fixed], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | fixed for row in rows)
    return out.getvalue()
