"""Where the landmarks and the clusters lie in an image."""

import functools

import jax
import numpy as np
from flax import nnx

from fna_jax import Clusters
from models.registry import vision_config, vision_tower


def landmark_points(backbone, images, *, rng=None) -> list[np.ndarray]:
    """Centres of the landmark patches of each image, pixels `(y, x)`: M arrays `[S', 2]`.

    A class token and registers have no place in the image and are left out: S' is at most S. Where
    the model runs centroid attention, a point is the middle of the patches of one cluster.

    Args:
      backbone: a model that runs FNA; with shared landmarks they are those of its first layer.
      images: preprocessed, float32 `[M, height, width, 3]`.
      rng: key of random landmarks, if the attention draws them.
    """
    landmarks = _landmarks(*nnx.split(backbone.model), images, rng)
    patch_size = vision_config(backbone.model.config).patch_size
    num_prefix = vision_tower(backbone.model).num_prefix
    columns = images.shape[2] // patch_size
    place = lambda patches: (np.stack(np.divmod(patches, columns), axis=-1) + 0.5) * patch_size
    if isinstance(landmarks, Clusters):
        of_patches = np.asarray(landmarks.assignment)[:, num_prefix:]
        return [
            np.stack([place(np.flatnonzero(of == one)).mean(axis=0) for one in np.unique(of)])
            for of in of_patches
        ]
    return [
        place(indices[valid & (indices >= num_prefix)] - num_prefix)
        for indices, valid in zip(*jax.device_get((landmarks.indices, landmarks.valid)))
    ]


def cluster_maps(backbone, images) -> np.ndarray:
    """The cluster of each patch, int32 `[M, rows, columns]`; numbers in no order.

    Args:
      backbone: a model that runs centroid attention, whose last clusters these are.
      images: preprocessed, float32 `[M, height, width, 3]`.
    """
    clusters = _landmarks(*nnx.split(backbone.model), images, None)
    num_prefix = vision_tower(backbone.model).num_prefix
    rows = images.shape[1] // vision_config(backbone.model.config).patch_size
    return np.asarray(clusters.assignment)[:, num_prefix:].reshape(len(images), rows, -1)


@functools.partial(jax.jit, static_argnums=0)
def _landmarks(graphdef, state, images, rng):
    return nnx.merge(graphdef, state)(images, rng=rng).landmarks


def displayable(images, preprocess) -> np.ndarray:
    """Preprocessed images as floats in 0..1, to be drawn."""
    return np.clip(images * np.array(preprocess.std) + np.array(preprocess.mean), 0, 1)
