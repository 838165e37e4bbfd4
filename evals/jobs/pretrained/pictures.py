"""Pictures of what a real model sees: its patch tokens as colours, and where people would look."""

import pathlib

import matplotlib
import numpy as np

from evals.data import read_image
from evals.jobs.arms import METHOD_NAMES, described, strength
from evals.jobs.pretrained.job import open_bench
from evals.running.workdir import save_figure
from models.inputs.preprocessor import Preprocessor
from models.registry import vision_config, vision_tower

matplotlib.use("Agg")  # before pyplot: no screen
import matplotlib.pyplot as plt

_RANGE = (1, 99)  # percent of exact attention's values that the colours span


def draw_pictures(config, workdir) -> list[str]:
    """Draws the first photographs of a run at each size; the names of the PNGs in `workdir`.

    Of random landmarks the first seed alone. Arguments are those of
    `evals.jobs.pretrained.job.compare_attentions`.
    """
    bench, arms = open_bench(config)
    files = bench.files[: config.num_pictures]
    written = []
    for size in config.image_sizes:
        drawn = [arm for arm in _first_seeds(arms) if not arm.drops]  # with all their patches
        tokens = {_title(arm): bench.tokens(arm, size, files) for arm in drawn}
        shown = {"photograph": _photographs(files, bench.backbone.preprocess.at_size(size))}
        pictures = {"tokens": _colours(tokens, bench.backbone.model, size)}
        if bench.decoder is not None:
            pictures["saliency"] = {title: bench.maps(x, size) for title, x in tokens.items()}
        for kind, columns in pictures.items():
            written.append(f"{kind}-{size}.png")
            draw_columns(shown | columns, pathlib.Path(workdir) / written[-1])
    return written


def component_colours(tokens, exact) -> np.ndarray:
    """`[n, 3]` in 0..1 of patch tokens `[n, C]`: their three principal components as colours.

    Components and range are those of exact attention's tokens `[n, C]`, so that the same colour
    means the same in both.
    """
    mean = exact.mean(axis=0)
    axes = np.linalg.svd(exact - mean, full_matrices=False)[2][:3]
    low, high = np.percentile((exact - mean) @ axes.T, _RANGE, axis=0)
    return np.clip(((tokens - mean) @ axes.T - low) / np.maximum(high - low, 1e-12), 0, 1)


def draw_columns(columns, file):
    """Draws pictures in columns, a row for each photograph.

    Args:
      columns: by title, M pictures `[height, width, 3]` or maps in 0..1 `[height, width]`.
      file: where the PNG goes.
    """
    count = len(next(iter(columns.values())))
    figure, axes = plt.subplots(
        count,
        len(columns),
        figsize=(2.1 * len(columns), 2.1 * count + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for column, (title, pictures) in zip(axes.T, columns.items()):
        column[0].set_title(title, fontsize=10)
        for axis, picture in zip(column, pictures):
            axis.imshow(picture, interpolation="nearest", vmin=0, vmax=1, cmap="magma")
            axis.set_axis_off()
    save_figure(figure, file)
    plt.close(figure)


def _colours(tokens, model, size):
    """The patch tokens `[M, N, C]` of each title as pictures `[M, h, w, 3]`; the first is exact."""
    prefix, side = vision_tower(model).num_prefix, size // vision_config(model.config).patch_size
    patches = {title: x[:, prefix:] for title, x in tokens.items()}
    exact = next(iter(patches.values()))
    return {
        title: [component_colours(*pair).reshape(side, side, 3) for pair in zip(x, exact)]
        for title, x in patches.items()
    }


def _photographs(files, preprocess):
    """The photographs as the model sees them, in 0..1."""
    plain = Preprocessor(preprocess.resize, preprocess.crop, mean=(0.0,) * 3, std=(1.0,) * 3)
    return [read_image(file, plain) for file in files]


def _first_seeds(arms):
    first = {}
    for arm in arms:
        first.setdefault(_title(arm), arm)
    return first.values()


def _title(arm):
    row = described(arm.name)
    text, number = METHOD_NAMES[arm.method], strength(row)
    if "kept" in row:
        return f"{text}\n{number} kept"
    return f"{text}\nS = {number}" if number else text
