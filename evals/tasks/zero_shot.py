"""Zero-shot classification: each image to the class whose prompts lie nearest (CLIP §3.1)."""

from evals.data import LabelledImages
from evals.running.embed import Embedder, unit
from evals.tasks.metrics import classification


def zero_shot(pretrained, data: LabelledImages, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `evals.tasks.metrics.classification` by cosines.

    Args:
      pretrained: an `evals.running.pretrained.Pretrained`.
      data: the labelled images.
      embedder: how embeddings are computed.
      rng: key of random landmarks, if the attention draws them.
    """
    prompts = [t.replace("{}", name) for name in data.class_names for t in data.templates]
    texts = unit(embedder.texts(pretrained, prompts))
    classes = unit(texts.reshape(len(data.class_names), len(data.templates), -1).mean(axis=1))
    images = embedder.images(pretrained, data.images, rng=rng)
    labels = data.take(images.rows).labels
    record = classification(unit(images.embeddings) @ classes.T, labels, data.class_names)
    return {"task": "zero_shot"} | record | images.times
