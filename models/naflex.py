"""SigLIP 2 NaFlex (arXiv 2502.14786): images of any size as rows of patches, padded to one length.

Shape letters: B images, N patches of an image with its padding, h and w patches down and across,
P pixels along a patch, C width.
"""

import jax.numpy as jnp
import numpy as np

from .attends import vision_attends
from .configs import position_grid
from .inputs.naflex_images import Patches
from .vit import VisionOutput

RULE = "bilinear_antialias"  # for positions; a SigLIP with it is a NaFlex


def encode_patches(tower, patches: Patches, *, rng=None) -> VisionOutput:
    """Tokens `[B, N, C]` and their pooled state `[B, C]`, as a call of the tower on images.

    Padding is attended to nowhere, is no landmark and in no cluster; tokens there are finite and
    mean nothing. One program is compiled for all sizes of images.

    Args:
      tower: a `SigLIPVisionTower` of NaFlex.
      patches: of `pack_patches`, or of transformers' processor.
      rng: key of random landmarks, if the attention draws them.

    Raises:
      ValueError: arrays that do not fit each other or the tower, which learned its positions for
        one resolution, or a view with interventions, fewer tokens, windows or `exclude`.
    """
    _check(tower, patches)
    mask = jnp.asarray(patches.mask, bool)
    options = dict(grid=None, rng=rng, compare=False, tokens=None, capture=None)
    attends = vision_attends(tower, **options, key_mask=mask)
    x = embed_patches(tower, patches)
    x, landmarks, _ = tower.encoder(x, attends, landmarks=(None,) * len(tower.fna))
    tokens, pooled = tower.finish(x, key_mask=mask)
    return VisionOutput(tokens, pooled, tower.last_landmarks(landmarks))


def embed_patches(tower, patches: Patches):
    """Tokens `[B, N, C]` before the first block, each with the position in its own image's grid."""
    conv = tower.patch_embedding.conv
    kernel = conv.kernel[...].reshape(-1, tower.config.encoder.width)
    pixels, kernel, bias = (
        jnp.asarray(x).astype(conv.dtype) for x in (patches.pixels, kernel, conv.bias[...])
    )
    learned = position_grid(tower.config)
    weights = position_weights(jnp.asarray(patches.shapes), pixels.shape[1], learned)
    positions = jnp.matmul(weights, tower.positions[...].astype(jnp.float32), precision="highest")
    return pixels @ kernel + bias + positions.astype(conv.dtype)


def position_weights(shapes, num_patches, learned):
    """What each patch's position takes of the learned ones, float32 `[B, N, h0·w0]`.

    Bilinear; where the image's grid is coarser than the learned one, averaged over as much more.

    Args:
      shapes: int `[B, 2]`, (h, w).
      num_patches: N; what comes after the h·w patches is the last of a row below the image.
      learned: (h0, w0).
    """
    width = jnp.maximum(shapes[:, 1:], 1)
    place = jnp.arange(num_patches)
    down = _hats(place // width, shapes[:, :1], learned[0])
    across = _hats(place % width, width, learned[1])
    weights = down[..., :, None] * across[..., None, :]  # [B, N, h0, w0]
    return weights.reshape(*weights.shape[:2], -1)


def _hats(place, size, learned):
    """Weights float32 `[B, N, learned]` along an axis of `size` `[B, 1]` at `place` `[B, N]`."""
    scale = learned / jnp.maximum(size, 1).astype(jnp.float32)
    place = jnp.minimum(place, jnp.maximum(size, 1) - 1)  # padding
    centres = (place + 0.5) * scale
    distances = jnp.abs(jnp.arange(learned) + 0.5 - centres[..., None])
    hats = jnp.maximum(1 - distances / jnp.maximum(scale, 1)[..., None], 0)
    return hats / jnp.sum(hats, axis=-1, keepdims=True)


def _check(tower, patches):
    config = tower.config
    if config.position_resize != RULE:
        raise ValueError(
            "patches of images of any size need a NaFlex, whose position_resize is "
            f"{RULE!r}; this tower's is {config.position_resize!r}: call it on images"
        )
    batch, length = np.shape(patches.pixels)[:2]
    expected = [(batch, length, 3 * config.patch_size**2), (batch, length), (batch, 2)]
    shapes = [np.shape(x) for x in (patches.pixels, patches.mask, patches.shapes)]
    if shapes != expected:
        raise ValueError(f"pixels, mask and shapes must be {expected}, got {shapes}")
    if tower.interventions.by_block or tower.reduction is not None:
        raise ValueError(
            "padded patches know exact and approximate attention, and this view masks tokens or "
            "takes some away: call the model itself, on images of one size"
        )
    for fna in tower.fna:
        if fna.windows is not None or fna.partition != "landmarks":
            raise ValueError(
                "windows are of one grid, and padded patches are of images with grids of their "
                "own: take partition='landmarks' without windows, or images of one size"
            )
        if fna.exclude is not None:
            raise ValueError(
                f"exclude={fna.exclude!r} does not know of padding: take None, or call the model "
                "itself, on images of one size"
            )
