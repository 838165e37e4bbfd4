"""Where the landmarks lie in an image."""

import functools

import jax
import numpy as np
from flax import nnx

from models.registry import vision_config, vision_tower


def landmark_points(backbone, images, *, rng=None) -> list[np.ndarray]:
    """Centres of the landmark patches of each image, pixels `(y, x)`: M arrays `[S', 2]`.

    A class token and registers have no place in the image and are left out: S' is at most S.

    Args:
      backbone: a model that runs FNA; with shared landmarks they are those of its first layer.
      images: preprocessed, float32 `[M, height, width, 3]`.
      rng: key of random landmarks, if the attention draws them.
    """
    landmarks = _landmarks(*nnx.split(backbone.model), images, rng)
    patch_size = vision_config(backbone.model.config).patch_size
    num_prefix = vision_tower(backbone.model).num_prefix
    columns = images.shape[2] // patch_size
    points = []
    for indices, valid in zip(*jax.device_get((landmarks.indices, landmarks.valid))):
        patches = indices[valid & (indices >= num_prefix)] - num_prefix
        grid = np.stack(np.divmod(patches, columns), axis=-1)
        points.append((grid + 0.5) * patch_size)
    return points


@functools.partial(jax.jit, static_argnums=0)
def _landmarks(graphdef, state, images, rng):
    return nnx.merge(graphdef, state)(images, rng=rng).landmarks


def displayable(images, preprocess) -> np.ndarray:
    """Preprocessed images as floats in 0..1, to be drawn."""
    return np.clip(images * np.array(preprocess.std) + np.array(preprocess.mean), 0, 1)
