"""The classifier head that a model was published with."""

from evals.data import LabelledImages
from evals.data.matching import by_outputs
from evals.running.embed import Embedder
from evals.tasks.metrics import classification
from models.configs import check_classifier
from models.registry import family_of


def classifier(backbone, data: LabelledImages, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `evals.tasks.metrics.classification` by its own head's logits.

    Which output a class of the data is, `evals.data.matching.by_outputs` tells. All outputs can be
    predicted, also where the data have only some of the classes.

    Args:
      backbone: an `evals.running.pretrained.Backbone`.
      data: the labelled images.
      embedder: how logits are computed.
      rng: key of random landmarks, if the attention draws them.

    Raises:
      ValueError: a model without a classifier, or one whose classes are not those of the data.
    """
    model = backbone.model
    if not hasattr(model, "classify"):
        raise ValueError(
            f"{backbone.name} is a {family_of(model)}, which has no classifier of its own; leave "
            "'classifier' out of --config.tasks, or take linear_probe"
        )
    check_classifier(model.config)
    data = by_outputs(data, model.config.num_classes, backbone.labels)
    logits = embedder.images(backbone, data.images, output="logits", rng=rng)
    labels = data.take(logits.rows).labels
    record = classification(logits.embeddings, labels, data.class_names)
    return {"task": "classifier"} | record | logits.times
