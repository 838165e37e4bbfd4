"""Zero-shot classification: each image to the class whose prompts lie nearest (CLIP §3.1)."""

import numpy as np

from evals.data import LabelledImages
from evals.embed import TIE, embed_images, embed_texts, unit


def zero_shot(pretrained, data: LabelledImages, *, batch_size, rng=None) -> dict:
    """The record of one model: accuracies in percent, `top5` where there are over five classes.

    Args:
      pretrained: an `evals.pretrained.Pretrained`.
      data: the labelled images.
      batch_size: images per step.
      rng: key of random landmarks, if the attention draws them.
    """
    prompts = [t.replace("{}", name) for name in data.class_names for t in data.templates]
    texts = unit(embed_texts(pretrained, prompts))
    classes = unit(texts.reshape(len(data.class_names), len(data.templates), -1).mean(axis=1))
    images = embed_images(pretrained, data.images, batch_size=batch_size, rng=rng)
    rank = true_class_rank(unit(images.embeddings) @ classes.T, data.labels)
    record = {"task": "zero_shot", "num_images": len(rank), "top1": 100 * np.mean(rank < 1)}
    if len(data.class_names) > 5:
        record["top5"] = 100 * np.mean(rank < 5)
    record["compile_seconds"] = images.compile_seconds
    record["images_per_second"] = images.images_per_second
    return {name: float(x) if isinstance(x, np.floating) else x for name, x in record.items()}


def true_class_rank(scores, labels):
    """Other classes that do not score clearly below the true one, int `[M]`; scores `[M, K]`."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    return np.sum(~(scores < own - TIE), axis=1) - 1
