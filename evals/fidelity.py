"""Fidelity without labels: how far FNA is from exact attention, layer by layer and at the end."""

import functools

import jax
import numpy as np
import tqdm
from flax import nnx

from evals.data import batches
from evals.embed import Embedder
from models.attends import relative_error
from models.registry import vision_tower


def fidelity(backbone, images, embedder: Embedder, *, rng=None) -> dict:
    """The record of a model with FNA: relative errors, means over images.

    `layer_errors`: of each FNA layer's attention output, on the exact model's inputs to it, so that
    layers are judged one by one. `embedding_error`: of the final image embedding when all of them
    run FNA. An error is `‖approximate − exact‖ / ‖exact‖` of one image.

    Arguments are those of `evals.zero_shot.zero_shot`, with the bare images as data.
    """
    run = functools.partial(_errors, *nnx.split(backbone.model))
    batch_size = min(embedder.batch_size, len(images))
    layers, embeddings = [], []
    reader = batches(images, backbone.preprocess, batch_size)
    total = -(-len(images) // batch_size)
    for batch in tqdm.tqdm(reader, desc="fidelity", total=total, leave=False, mininterval=1):
        key = None if rng is None else jax.random.fold_in(rng, len(layers))
        by_layer, embedding = run(batch.images, key)
        layers.append(np.asarray(by_layer)[:, batch.real])
        embeddings.append(np.asarray(embedding)[batch.real])
    by_layer = np.concatenate(layers, axis=1).mean(axis=1)
    blocks = vision_tower(backbone.model).fna.layers
    return {
        "task": "fidelity",
        "num_images": sum(map(len, embeddings)),
        "layer_errors": {str(block): float(error) for block, error in zip(blocks, by_layer)},
        "embedding_error": float(np.concatenate(embeddings).mean()),
    }


@functools.partial(jax.jit, static_argnums=0)
def _errors(graphdef, state, images, rng):
    """Relative errors of the attention outputs `[L, B]` and of the embeddings `[B]`."""
    model = nnx.merge(graphdef, state)
    project = getattr(model, "vision_projection", lambda pooled: pooled)
    exact = model(images, rng=rng, compare=True)  # runs exactly
    approximate = model(images, rng=rng)
    error = relative_error(project(approximate.pooled), project(exact.pooled))
    return exact.attention_error, error
