"""Where the landmarks lie in an image."""

import jax
import numpy as np


def landmark_points(pretrained, images, *, rng=None) -> list[np.ndarray]:
    """Centres of the landmark patches of each image, pixels `(y, x)`: M arrays `[S', 2]`.

    A class token and registers have no place in the image and are left out: S' is at most S.

    Args:
      pretrained: a model that runs FNA; with shared landmarks they are those of its first layer.
      images: preprocessed, float32 `[M, height, width, 3]`.
      rng: key of random landmarks, if the attention draws them.
    """
    landmarks = pretrained.model(images, rng=rng).landmarks
    patch_size = pretrained.model.config.vision.patch_size
    num_prefix = pretrained.model.vision.num_prefix
    columns = images.shape[2] // patch_size
    points = []
    for indices, valid in zip(*jax.device_get((landmarks.indices, landmarks.valid))):
        patches = indices[valid & (indices >= num_prefix)] - num_prefix
        grid = np.stack(np.divmod(patches, columns), axis=-1)
        points.append((grid + 0.5) * patch_size)
    return points


def displayable(images, preprocess) -> np.ndarray:
    """Preprocessed images as floats in 0..1, to be drawn."""
    return np.clip(images * np.array(preprocess.std) + np.array(preprocess.mean), 0, 1)
