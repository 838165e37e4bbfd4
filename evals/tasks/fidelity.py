"""Fidelity without labels: how far FNA is from exact attention, layer by layer and at the end."""

from evals.running.devices import data_parallel, joined, over_batches
from evals.running.embed import Embedder
from fna_jax.config import config_by_block
from models.attends import relative_error
from models.registry import vision_tower


def fidelity(backbone, images, embedder: Embedder, *, rng=None) -> dict:
    """The record of a model with FNA: relative errors, means over images.

    `layer_errors`: of each FNA layer's attention output, on the exact model's inputs to it, so that
    layers are judged one by one. `embedding_error`: of the final image embedding when all of them
    run FNA. An error is `‖approximate − exact‖ / ‖exact‖` of one image.

    Arguments are those of `evals.tasks.zero_shot.zero_shot`, with the bare images as data.
    """
    run = data_parallel(_errors, backbone.model)
    options = dict(rng=rng, desc="fidelity")
    parts = over_batches(run, images, backbone.preprocess, embedder.batch_size, **options)
    _, (by_layer, errors) = joined(parts)
    by_layer = by_layer.mean(axis=0)
    blocks = sorted(config_by_block(vision_tower(backbone.model).fna))
    return {
        "task": "fidelity",
        "num_images": len(errors),
        "layer_errors": {str(block): float(error) for block, error in zip(blocks, by_layer)},
        "embedding_error": float(errors.mean()),
    }


def image_embedding(model, pooled):
    """An image's embedding from its pooled state `[B, C]`: projected, if the model has texts."""
    project = getattr(model, "vision_projection", lambda pooled: pooled)
    return project(pooled)


def _errors(model, images, rng):
    """Relative errors of the attention outputs `[B, L]` and of the embeddings `[B]`."""
    exact = model(images, rng=rng, compare=True)  # runs exactly
    approximate = model(images, rng=rng)
    error = relative_error(*(image_embedding(model, x.pooled) for x in (approximate, exact)))
    return exact.attention_error.T, error
