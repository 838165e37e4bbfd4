"""A picture of scenes with questions, exact attention's answers, and an approximation's."""

import json
import pathlib
import typing

import matplotlib
import numpy as np

from evals.jobs.vqa.asking import suffix_of
from evals.jobs.vqa.job import questions_of
from evals.running.workdir import save_figure

matplotlib.use("Agg")  # before pyplot: no screen
import matplotlib.pyplot as plt

_COLUMNS = 4


class Example(typing.NamedTuple):
    """An image uint8 `[height, width, 3]`, and of each question: text, reference, both answers."""

    image: np.ndarray
    asked: list[tuple[str, str, str, str]]


def answer_examples(config, results, workdir, *, num_images=8):
    """Examples, first those where both answers differ, and what the approximation is called.

    It is the arm whose answers are least those of exact attention, of the first size of images.
    """
    first = results["points"][0]
    points = [p for p in results["points"] if p["task"] == first["task"]]
    points = [p for p in points if p.get("pixels") == first.get("pixels")]
    other = min(points, key=lambda point: point["identical"])
    told = results["arms"][other["arm"]]
    folder = pathlib.Path(workdir, f"predictions{suffix_of(first.get('pixels'))}")
    exact, approximate = (_answers(folder / f"{p['arm']}.json") for p in (first, other))
    questions, images = questions_of(config), {}
    for row, image in enumerate(questions.images):
        images.setdefault(id(image), []).append(row)
    unlike = lambda rows: -sum(exact[row] != approximate[row] for row in rows)
    examples = [
        Example(
            questions.images[rows[0]],
            [(questions.texts[i], questions.answers[i][0], exact[i], approximate[i]) for i in rows],
        )
        for rows in sorted(images.values(), key=unlike)[:num_images]
    ]
    return examples, " ".join(filter(None, (told["label"], told["strength"])))


def _answers(file):
    return [entry["answer"] for entry in json.loads(file.read_text())]


def draw_answers(examples, name, file):
    """Draws the examples, and below each its questions with both answers, in red where wrong.

    Args:
      examples: of `answer_examples`.
      name: of the approximation.
      file: where the PNG goes.
    """
    rows = -(-len(examples) // _COLUMNS)
    figure, axes = plt.subplots(
        2 * rows,
        _COLUMNS,
        figsize=(3.4 * _COLUMNS, 4.2 * rows),
        height_ratios=[1.5, 2] * rows,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_axis_off()
    for number, example in enumerate(examples):
        row, column = divmod(number, _COLUMNS)
        axes[2 * row, column].imshow(example.image, interpolation="nearest")
        _write(axes[2 * row + 1, column], example.asked)
    figure.suptitle(f"exact attention · {name}; red: wrong")
    save_figure(figure, file)
    plt.close(figure)


def _write(axis, asked):
    """The questions in an axis, each with its answers in a line below."""
    for number, (text, right, *answers) in enumerate(asked):
        top = 1 - number / 5
        axis.text(0, top, text, fontsize=8, color="#555555", va="top")
        for place, answer in zip((0.04, 0.52), answers):
            colour = "black" if answer == right else "#c00000"
            axis.text(place, top - 0.09, answer or "–", fontsize=8, color=colour, va="top")
