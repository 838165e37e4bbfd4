"""Zero-shot classification: each image to the class whose prompts lie nearest (CLIP §3.1)."""

import numpy as np

from evals.data import LabelledImages
from evals.embed import TIE, Embedder, unit


def zero_shot(pretrained, data: LabelledImages, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: accuracies in percent, `top5` where there are over five classes.

    Args:
      pretrained: an `evals.pretrained.Pretrained`.
      data: the labelled images.
      embedder: how embeddings are computed.
      rng: key of random landmarks, if the attention draws them.
    """
    prompts = [t.replace("{}", name) for name in data.class_names for t in data.templates]
    texts = unit(embedder.texts(pretrained, prompts))
    classes = unit(texts.reshape(len(data.class_names), len(data.templates), -1).mean(axis=1))
    images = embedder.images(pretrained, data.images, rng=rng)
    labels = data.take(images.rows).labels
    rank = true_class_rank(unit(images.embeddings) @ classes.T, labels)
    record = {"task": "zero_shot", "num_images": len(rank), "top1": float(100 * np.mean(rank < 1))}
    if len(data.class_names) > 5:
        record["top5"] = float(100 * np.mean(rank < 5))
    return record | images.times


def true_class_rank(scores, labels):
    """Other classes that do not score clearly below the true one, int `[M]`; scores `[M, K]`."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return np.sum(~(scores < own - TIE), axis=1) - 1
