"""Fidelity without labels: how far FNA is from exact attention, layer by layer and at the end."""

import functools

import jax
import numpy as np
import tqdm
from flax import nnx

from evals.data import batches
from models.attends import relative_error


def fidelity(pretrained, images, *, batch_size, rng=None) -> dict:
    """The record of a model with FNA: relative errors, means over images.

    `layer_errors`: of each FNA layer's attention output, on the exact model's inputs to it, so that
    layers are judged one by one. `embedding_error`: of the final image embedding when all of them
    run FNA. An error is `‖approximate − exact‖ / ‖exact‖` of one image.

    Arguments are those of `evals.zero_shot.zero_shot`, with the bare images as data.
    """
    run = functools.partial(_errors, *nnx.split(pretrained.model))
    exact = nnx.split(pretrained.with_attention(None).model)[0]
    batch_size = min(batch_size, len(images))
    layers, embeddings = [], []
    reader = batches(images, pretrained.preprocess, batch_size)
    total = -(-len(images) // batch_size)
    for index, (batch, count) in enumerate(
        tqdm.tqdm(reader, desc="fidelity", total=total, leave=False, mininterval=1)
    ):
        key = None if rng is None else jax.random.fold_in(rng, index)
        by_layer, embedding = run(batch, key, exact=exact)
        layers.append(np.asarray(by_layer)[:, :count])
        embeddings.append(np.asarray(embedding)[:count])
    by_layer = np.concatenate(layers, axis=1).mean(axis=1)
    return {
        "task": "fidelity",
        "num_images": len(images),
        "layer_errors": {
            str(layer): float(error)
            for layer, error in zip(pretrained.model.vision.fna.layers, by_layer)
        },
        "embedding_error": float(np.concatenate(embeddings).mean()),
    }


@functools.partial(jax.jit, static_argnums=0, static_argnames="exact")
def _errors(graphdef, state, images, rng, *, exact):
    """Relative errors of the attention outputs `[L, B]` and of the embeddings `[B]`."""
    model = nnx.merge(graphdef, state)
    compared = model(images, rng=rng, compare=True)  # runs exactly
    approximate = model.encode_image(images, rng=rng)
    target = nnx.merge(exact, state).vision_projection(compared.pooled)
    return compared.attention_error, relative_error(approximate, target)
