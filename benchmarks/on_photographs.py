"""Attentions of a real model side by side on photographs: their time, and their error on each."""

import argparse
import itertools

import numpy as np

from evals.data import read_image
from evals.data.photographs import photographs
from evals.running.timing import time_in_turns


def at_least_one(text) -> int:
    """For argparse: a positive number."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"at least 1, got {number}")
    return number


def images_of(half, backbone, pixels, number) -> list[np.ndarray]:
    """The first photographs of a half as the model takes them, float32 `[1, pixels, pixels, 3]`."""
    preprocess = backbone.preprocess.at_size(pixels)
    return [np.asarray(read_image(file, preprocess))[None] for file in photographs(half)[:number]]


def run_in_turns(runs, images, *, progress):
    """Runs functions of an image in turns, in each round on another image.

    Args:
      runs: functions of an image that give its tokens `[1, N, C]`, by name.
      images: M of `images_of`.
      progress: what a bar calls the rounds.

    Returns:
      The timings by name, without those that did not fit the memory, and as many tokens float32
      `[M, N, C]`.
    """
    tokens = {name: {} for name in runs}
    arms = {name: _in_rounds(run, images, tokens[name]) for name, run in runs.items()}
    # An arm's first call and its warm-up see a photograph each.
    timings = time_in_turns(arms, repeats=max(len(images) - 2, 1), progress=progress)
    return timings, {
        name: np.concatenate([tokens[name][index] for index in range(len(images))])
        for name in timings
    }


def _in_rounds(run, images, tokens):
    """An arm that runs the next of the images, and keeps its tokens."""
    turns = itertools.cycle(range(len(images)))

    def arm():
        index = next(turns)
        tokens[index] = np.asarray(run(images[index]))  # waits for them

    return arm


def error_columns(errors) -> dict:
    """Means and spreads over photographs of `token_errors`, and the larger mean."""
    columns, means = {}, {name: float(np.mean(values)) for name, values in errors.items()}
    for name, values in errors.items():
        columns[name] = round(means[name], 4)
        columns[f"{name}_spread"] = round(float(np.std(values, ddof=1)), 4) if values[1:] else None
    return columns | {"error": round(max(means.values()), 4)}
