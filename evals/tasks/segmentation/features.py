"""What a frozen vision transformer says of each patch."""

import dataclasses

import jax
import jax.numpy as jnp

from models import Capture
from models.registry import vision_tower

LAYERS = {"last": 1, "last four": 4}


@dataclasses.dataclass(frozen=True)
class PatchFeatures:
    """The patch tokens of the last blocks, float32 `[B, h, w, L·C]`: of each block, side by side.

    Each block's tokens are layer-normalised, as in DINOv2's recipe. The norm has no parameters: a
    final norm's scale and bias would be lost where the head standardises its channels.

    Attributes:
      layers: which blocks, a name of `LAYERS`.
    """

    layers: str

    def __call__(self, model, images, rng=None):
        """Of images float32 `[B, height, width, 3]`, preprocessed; `rng` for random landmarks."""
        depth = len(vision_tower(model).encoder.blocks)
        blocks = tuple(range(depth - LAYERS[self.layers], depth))
        features = model(images, rng=rng, capture=Capture(features=blocks)).captured.features
        return jnp.concatenate([_normalised(features[block]) for block in blocks], axis=-1)


def _normalised(tokens):
    return jax.nn.standardize(tokens.astype(jnp.float32), axis=-1, epsilon=1e-6)
