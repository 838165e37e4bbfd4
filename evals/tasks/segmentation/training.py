"""The head of a run: trained on the exact model's features of the train split."""

import functools

import numpy as np

from evals.running.cache import data_digest
from evals.running.devices import data_parallel
from evals.tasks.segmentation.features import PatchFeatures
from evals.tasks.segmentation.head import LinearHead, train_head
from evals.tasks.segmentation.reading import label_windows, over_windows

_KEPT_BYTES = 2**30  # of features in memory; more are computed anew in each epoch


def trained_head(backbone, data, embedder, settings) -> LinearHead:
    """The head for these settings, the same for the same arguments; from the cache if it is there.

    Args:
      backbone: an `evals.running.pretrained.Backbone`; its exact attention makes the features.
      data: `SegmentedImages` to train on.
      embedder: an `evals.running.embed.Embedder`, whose batches here are of windows.
      settings: a `Settings`.
    """
    exact = backbone.exact()
    if embedder.cache is None:
        return _trained_head(exact, data, embedder, settings)
    entry = embedder.cache.of_images(
        exact,
        data.images,
        output="segmentation head",
        settings=settings,
        batch_size=embedder.batch_size,
        labels=(data_digest(data.label_maps), data.first_label, len(data.class_names)),
    )
    if (arrays := entry.read(0)) is None:
        arrays = vars(_trained_head(exact, data, embedder, settings))
        entry.write(0, arrays)
    return LinearHead(**arrays)


def _trained_head(backbone, data, embedder, settings):
    sliding = settings.sliding(backbone)
    run = data_parallel(PatchFeatures(settings.layers), backbone.model)
    shuffle = np.random.default_rng(0)

    def epoch():
        rows = shuffle.permutation(len(data.images))
        images = over_windows(run, data, rows, backbone.preprocess, sliding, embedder)
        return _minibatches(images, sliding, embedder.batch_size)

    features, labels, complete = _sample(epoch())
    head = LinearHead.untrained(features, len(data.class_names))
    if complete:
        minibatches = _from_memory(features, labels, embedder.batch_size, shuffle)
    else:
        del features, labels
        minibatches = _without_end(epoch)
    train = functools.partial(train_head, head, minibatches)
    return train(steps=settings.steps, rate=settings.rate, weight_decay=settings.weight_decay)


def _minibatches(images, sliding, batch_size):
    """Yields features `[B, h, w, C]` and labels uint8 `[B, s, s]` of the windows of images.

    The last may be less than `batch_size`.
    """
    features, labels = [], []
    for image, of_windows in images:
        features.extend(of_windows)
        labels.extend(label_windows(image, sliding))
        while len(features) >= batch_size:
            yield np.stack(features[:batch_size]), np.stack(labels[:batch_size])
            del features[:batch_size], labels[:batch_size]
    if features:
        yield np.stack(features), np.stack(labels)


def _sample(minibatches):
    """Features and labels of as many windows as may be kept, and whether these are all."""
    features, labels, kept = [], [], 0
    for more, their_labels in minibatches:
        features.append(more)
        labels.append(their_labels)
        kept += more.nbytes
        if kept > _KEPT_BYTES:
            break
    return np.concatenate(features), np.concatenate(labels), kept <= _KEPT_BYTES


def _from_memory(features, labels, batch_size, shuffle):
    """Yields minibatches without end; an epoch leaves out what does not fill one."""
    batch_size = min(batch_size, len(features))
    while True:
        order = shuffle.permutation(len(features))
        for rows in order[: len(order) // batch_size * batch_size].reshape(-1, batch_size):
            yield features[rows], labels[rows]


def _without_end(epoch):
    while True:
        yield from epoch()
