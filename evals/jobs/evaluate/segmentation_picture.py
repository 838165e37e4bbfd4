"""A picture of segmentations: images, truth, and what each attention makes of them."""

import itertools

import jax
import matplotlib
import numpy as np

from evals.data import IGNORED, read_image
from evals.data.datasets import open_data
from evals.jobs.arms import METHOD_NAMES, WITHOUT_NUMBER, make_arms
from evals.jobs.opening import open_model_of
from evals.running.embed import open_embedder
from evals.running.workdir import save_figure
from evals.tasks.segmentation.settings import Settings
from evals.tasks.segmentation.task import logits_of, predictions
from evals.tasks.segmentation.training import trained_head
from models.inputs.preprocessor import Preprocessor
from models.registry import vision_config

matplotlib.use("Agg")  # before pyplot: no screen
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

_AS_IT_IS = Preprocessor(resize=None, crop=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_MOST_NAMES = 40  # in the legend


def segmentation_examples(config, workdir, *, num_images=4):
    """The first test images, and label maps by title: the truth, and what each attention predicts.

    Of random landmarks the first seed alone. The head is the run's in `workdir`, if that has a
    cache. For `draw_segmentation`.
    """
    backbone, settings = open_model_of(config), Settings(**config.get("segmentation", {}))
    data = open_data("segmented split", config)
    embedder = open_embedder(config, workdir)
    head = trained_head(backbone, data.train, embedder, settings)
    label_maps = {}
    for arm in make_arms(config.fna, vision_config(backbone.model.config).encoder.depth):
        if not arm.sees_all:
            continue
        title = METHOD_NAMES[arm.method]
        title += "" if arm.method in WITHOUT_NUMBER else f"\nS = {arm.fna.num_landmarks}"
        if title in label_maps:
            continue
        view, rng = arm.view(backbone), None if arm.seed is None else jax.random.key(arm.seed)
        run = logits_of(view, head, settings)
        found = predictions(run, view, data.test, embedder, settings, rng=rng)
        found = [*itertools.islice(found, num_images)]
        label_maps[title] = [predicted for _, predicted in found]
    truth = [image.label_map for image, _ in found]
    images = [read_image(data.test.images[image.row], _AS_IT_IS) for image, _ in found]
    return images, {"truth": truth, **label_maps}, data.test.class_names


def draw_segmentation(images, label_maps, class_names, file):
    """Draws images, a row each, beside label maps, with a legend of the classes.

    Args:
      images: M of them, floats in 0..1 `[height, width, 3]`.
      label_maps: by title of the column, M of uint8 `[height, width]`.
      class_names: K names.
      file: where the PNG goes.
    """
    columns = {"image": images} | {
        title: [PALETTE[label_map] for label_map in maps] for title, maps in label_maps.items()
    }
    figure, axes = plt.subplots(
        len(images),
        len(columns),
        figsize=(1.8 * len(columns), 1.8 * len(images) + 0.8),
        squeeze=False,
        layout="constrained",
    )
    for column, (title, pictures) in zip(axes.T, columns.items()):
        column[0].set_title(title)
        for axis, picture in zip(column, pictures):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
    shown = np.unique(np.concatenate([m.ravel() for maps in label_maps.values() for m in maps]))
    names = [(label, "ignored" if label == IGNORED else class_names[label]) for label in shown]
    patches = [
        Patch(facecolor=PALETTE[label] / 255, edgecolor="#888888", label=name)
        for label, name in names[:_MOST_NAMES]
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(columns))
    save_figure(figure, file)
    plt.close(figure)


def _palette():
    """Colours of labels, uint8 `[256, 3]`: 20 to tell apart, on black, then those of Pascal VOC.

    VOC's take red from bits 0, 3, 6 of the label, green and blue from the next, highest first.
    """
    labels = np.arange(256)
    colours = np.zeros((256, 3), int)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= (labels >> (3 * place + channel) & 1) << (7 - place)
    strong_then_pale = [*range(0, 20, 2), *range(1, 20, 2)]
    colours[1:21] = 255 * np.array(matplotlib.colormaps["tab20"].colors)[strong_then_pale]
    return colours.astype(np.uint8)


PALETTE = _palette()
