"""Segmentation with a linear head that was trained on the exact model's frozen patch tokens."""

import jax
import numpy as np

from evals.data import Split
from evals.running.devices import data_parallel
from evals.running.embed import Embedder, Timed
from evals.tasks.segmentation.features import PatchFeatures
from evals.tasks.segmentation.metrics import confusion_matrix, scores
from evals.tasks.segmentation.reading import over_windows
from evals.tasks.segmentation.settings import Settings
from evals.tasks.segmentation.sliding import label_pixels
from evals.tasks.segmentation.training import trained_head


def segmentation(backbone, data: Split, embedder: Embedder, *, rng=None, **settings) -> dict:
    """The record of one model: `metrics.scores`, numbers of images, and times.

    `images_per_second` is the backbone's and the head's, on all windows of an image, while nothing
    else is read or computed.

    Args:
      backbone: an `evals.running.pretrained.Backbone`.
      data: segmented images to train the head on, with exact attention, and to test with.
      embedder: whose batches here are of windows.
      rng: key of random landmarks, if the attention draws them.
      **settings: fields of `Settings`.

    Raises:
      ValueError: settings out of range or not for this model, images that do not open, or label
        maps without any class.
    """
    settings = Settings(**settings)
    head = trained_head(backbone, data.train, embedder, settings)
    run = Timed(logits_of(backbone, head, settings))
    num_classes = len(data.test.class_names)
    confusion = np.zeros((num_classes, num_classes), np.int64)
    num_images = num_windows = 0
    found = predictions(run, backbone, data.test, embedder, settings, rng=rng)
    for image, predicted in found:
        confusion += confusion_matrix(image.label_map, predicted, num_classes)
        num_images += 1
        num_windows += len(image.windows)
    if not confusion.any():
        raise ValueError("no pixel of the test images has a class: all are ignored")
    compile_seconds, typical = run.times()
    return {
        "task": "segmentation",
        "num_images": num_images,
        "num_unreadable": len(data.test.images) - num_images,
        **scores(confusion, data.test.class_names),
        "compile_seconds": compile_seconds,
        "images_per_second": embedder.batch_size / typical * num_images / num_windows,
    }


def check_segmentation(backbone, **settings) -> None:
    """Raises ValueError for settings out of range, or not for this model."""
    Settings(**settings).sliding(backbone)


def logits_of(backbone, head, settings):
    """A function of windows `[B, s, s, 3]` and a key that gives logits `[B, h, w, K]`."""
    features = data_parallel(PatchFeatures(settings.layers), backbone.model)
    return lambda windows, rng=None: _logits(head, features(windows, rng))


def predictions(run, backbone, data, embedder, settings, *, rng=None):
    """Yields images, `reading.Sliced`, and their predicted classes, uint8 `[y, x]`.

    Args:
      run: of `logits_of`.
      backbone: whose preprocessing and windows are used.
      data: `SegmentedImages`.
      embedder, settings, rng: as in `segmentation`.
    """
    sliding, rows = settings.sliding(backbone), range(len(data.images))
    images = over_windows(run, data, rows, backbone.preprocess, sliding, embedder, rng=rng)
    for image, logits in images:
        predicted = label_pixels(sliding, logits, image.canvas, image.label_map.shape)
        yield image, np.asarray(predicted)


@jax.jit
def _logits(head, features):
    return head(features)
