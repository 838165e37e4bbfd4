"""The classifier head that a model was published with."""

from evals.data import LabelledImages
from evals.running.embed import Embedder
from evals.tasks.metrics import classification
from models.configs import check_classifier
from models.registry import family_of


def classifier(backbone, data: LabelledImages, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `evals.tasks.metrics.classification` by its own head's logits.

    The data's class k is the head's output k. Class folders are numbered in the order of their
    names, as torchvision's ImageFolder does: the order that heads for ImageNet were trained in,
    where its folders have their original names (n01440764, …).

    Args:
      backbone: an `evals.running.pretrained.Backbone`.
      data: the labelled images.
      embedder: how logits are computed.
      rng: key of random landmarks, if the attention draws them.

    Raises:
      ValueError: a model without a classifier, or one of another number of classes.
    """
    model, num_classes = backbone.model, len(data.class_names)
    if not hasattr(model, "classify"):
        raise ValueError(
            f"{backbone.name} is a {family_of(model)}, which has no classifier of its own; leave "
            "'classifier' out of --config.tasks, or take linear_probe"
        )
    check_classifier(model.config)
    if model.config.num_classes != num_classes:
        raise ValueError(
            f"the classifier of {backbone.name} tells {model.config.num_classes} classes, but the "
            f"data have {num_classes}; give a folder with one folder for each of its classes (an "
            "empty one for a class without images is left out, and shifts the others)"
        )
    logits = embedder.images(backbone, data.images, output="logits", rng=rng)
    labels = data.take(logits.rows).labels
    record = classification(logits.embeddings, labels, data.class_names)
    return {"task": "classifier"} | record | logits.times
