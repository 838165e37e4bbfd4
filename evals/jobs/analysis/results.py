"""The numbers of an analysis, ready for JSON, and what they say in words."""

import numpy as np

from evals.jobs.analysis.groups import group_names
from evals.jobs.analysis.measure import Measured, Plan
from evals.jobs.tables import markdown_table

KINDS = (  # of tokens that are counted
    "massive by norm",
    "massive by attention",
    "massive by both",
    "attention sinks",
    "artifacts",
)
COUNT_HEADINGS = ["tokens per image", "mean", "min", "max", "images with none"]


def summarize(measured: Measured, plan: Plan, num_prefix) -> dict:
    """Means and extremes over images, by name; None where nothing was there to average.

    `norms`, in front of each block and after the last: of the patches' medians and 99 %, the mean
    over images, and the maximum of all. `largest_norm`: of each image, the mean. `attention` and
    `suppression`: by block, tables of `groups`, each entry over the images that have such tokens.
    """
    images, largest = measured.images, measured.images["norms"][:, 2]
    counts = {kind: _spread(images["counts"][kind]) for kind in KINDS}
    both = counts["massive by both"]["mean"]
    either = counts["massive by norm"]["mean"] + counts["massive by attention"]["mean"] - both
    rows = images["attention"][plan.blocks[0]][..., 0]  # NaN where a group has no tokens
    groups = group_names(num_prefix)
    return {
        "num_images": len(largest),
        "skipped": [{"file": error.file, "reason": error.reason} for error in measured.skipped],
        "block": plan.block,
        "first_block": plan.first_block,
        "blocks": list(plan.blocks),
        "massive": plan.massive,
        "max_sinks": plan.max_sinks,
        "has_class_token": num_prefix > 0,
        "counts": counts,
        "agreement": both / either if either else None,
        "images_at_max_sinks": int(np.sum(images["counts"]["attention sinks"] == plan.max_sinks)),
        "largest_step": {"median": _median(images["step"]), "maximum": float(images["step"].max())},
        "own_attention": float(images["own"].mean()),
        "attention_to_average_patch": float(images["average"].mean()),
        "norms": {
            "median": images["norms"][:, 0].mean(0).tolist(),
            "99 %": images["norms"][:, 1].mean(0).tolist(),
            "maximum": largest.max(0).tolist(),
        },
        "largest_norm": {
            "with attention": largest.mean(0).tolist(),
            "without attention": images["unattended"].mean(0).tolist(),
        },
        "groups": groups,
        "images_with_group": dict(zip(groups, np.sum(~np.isnan(rows), axis=0).tolist())),
        "attention": {str(block): _means(of) for block, of in images["attention"].items()},
        "suppression": {str(block): _means(of) for block, of in images["suppression"].items()},
    }


def in_words(numbers) -> list[str]:
    """What the numbers say, sentence by sentence, and where they say nothing."""
    reader = "class token" if numbers["has_class_token"] else "average token"
    said = [_about_norms(numbers), _about_attention(numbers, reader), _about_sinks(numbers)]
    if numbers["agreement"] is not None:
        said.append(
            f"Of the tokens that either detector calls massive, {_percent(numbers['agreement'])} "
            "are called so by both."
        )
    own, average = numbers["own_attention"], numbers["attention_to_average_patch"]
    if average > 0.3 * own:
        said.append(
            f"Caution: the {reader} hardly attends to itself in block {numbers['block']}: "
            f"{_percent(own)} of its attention, where the average patch gets {_percent(average)}. "
            "The attention detector and the search for sinks compare with what it gives itself, "
            "so here many a patch may pass, and what they find tells little."
        )
    grown, free = (curve[-1] for curve in numbers["largest_norm"].values())
    said.append(
        f"With attention switched off from block {numbers['first_block']} on, the largest norm of "
        f"a patch ends at {_short(free)} on average, and at {_short(grown)} with attention."
    )
    if numbers["skipped"]:
        said.append(f"{_images(len(numbers['skipped']))} did not open and were left out.")
    return said


def count_rows(numbers) -> list[list[str]]:
    """Rows of the table of counts, under `COUNT_HEADINGS`."""
    return [
        [kind, f"{count['mean']:.2f}", str(count["min"]), str(count["max"]), str(count["none"])]
        for kind, count in numbers["counts"].items()
    ]


def count_table(numbers) -> str:
    """The table of counts in markdown."""
    return markdown_table(COUNT_HEADINGS, count_rows(numbers))


def _about_norms(numbers):
    count, step = numbers["counts"]["massive by norm"], numbers["largest_step"]
    where = f"by norm, in front of block {numbers['block']}"
    if count["max"]:
        return (
            f"Massive tokens {where}: in {numbers['num_images'] - count['none']} of "
            f"{_images(numbers['num_images'])}, {_per_image(count)}."
        )
    return (
        f"No massive tokens {where}, in any of {_images(numbers['num_images'])}: the largest step "
        f"from one patch's norm to the next larger one is a factor of {step['median']:.2f} in the "
        f"median image and {step['maximum']:.2f} at most; it would have to be 2, and stand out."
    )


def _about_attention(numbers, reader):
    count = numbers["counts"]["massive by attention"]
    return (
        f"Massive tokens by attention (more than 0.3 of what the {reader} gives itself in block "
        f"{numbers['block']}): {_per_image(count)}."
    )


def _about_sinks(numbers):
    text = (
        f"Attention sinks: {_per_image(numbers['counts']['attention sinks'])}; those that are not "
        f"massive by {numbers['massive']}, the artifacts: "
        f"{_per_image(numbers['counts']['artifacts'])}."
    )
    if stopped := numbers["images_at_max_sinks"]:
        text += (
            f" In {stopped} of {_images(numbers['num_images'])} the search ended at max_sinks = "
            f"{numbers['max_sinks']}, so there may be more."
        )
    return text


def _per_image(count):
    if count["max"] == 0:
        return "none"
    if count["min"] == count["max"]:
        return f"{count['min']} in each image"
    return f"{count['mean']:.1f} per image, {count['min']} to {count['max']}"


def _images(number):
    return "1 image" if number == 1 else f"{number} images"


def _percent(share):
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def _short(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _spread(count):
    extremes = {"min": int(count.min()), "max": int(count.max())}
    return {"mean": float(count.mean()), **extremes, "none": int(np.sum(count == 0))}


def _median(values):
    return float(np.median(values))


def _means(tables):
    """Means of `[M, …]` over the images, NaN aside; None where there is nothing else."""
    there = ~np.isnan(tables)
    number = there.sum(axis=0)
    means = np.where(there, tables, 0).sum(axis=0) / np.maximum(number, 1)
    return np.where(number > 0, means, None).tolist()
