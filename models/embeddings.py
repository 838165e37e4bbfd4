"""Images to tokens: patches, learned positions at any resolution, tokens in front.

Shape letters: B batch, C width, P tokens in front of the patches, h and w patches down and across.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# How learned positions reach another grid: (method, antialias, the offset of the scale
# (n + offset) / n0); None for what is bilinear from corner to corner.
POSITION_RESIZES = {
    "bicubic": ("bicubic-pytorch", False, 0.0),  # Hugging Face
    "bicubic_antialias": ("bicubic-pytorch", True, 0.0),  # open_clip, timm, DINOv2 with registers
    "bicubic_offset": ("bicubic-pytorch", False, 0.1),  # DINOv2 without registers, as trained
    "bilinear_antialias": ("linear", True, 0.0),  # SigLIP 2 NaFlex
    "bilinear_corners": None,  # Google's vision_transformer and big_vision
}


class PatchEmbedding(nnx.Module):
    """Images `[B, height, width, 3]` to patch tokens `[B, h·w, C]`, row by row."""

    channels = 3

    def __init__(self, width, patch_size, *, use_bias, dtype, param_dtype, rngs):
        self.patch_size = patch_size
        self.conv = nnx.Conv(
            self.channels,
            width,
            (patch_size, patch_size),
            strides=patch_size,
            padding="VALID",
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )

    def grid(self, images):
        """Patches down and across; raises where an image does not divide by the patch."""
        if (
            images.ndim != 4
            or images.shape[-1] != 3
            or not jnp.issubdtype(images.dtype, jnp.floating)
        ):
            raise ValueError(
                "images must be preprocessed floats [B, height, width, 3], "
                f"got {images.dtype}{list(images.shape)}"
            )
        for name, size in zip(("height", "width"), images.shape[1:3]):
            below = size // self.patch_size * self.patch_size
            if size != below or not size:
                nearest = f"{below} or {below + self.patch_size}" if below else self.patch_size
                raise ValueError(
                    f"image {name} {size} does not divide by the patch size {self.patch_size}; "
                    f"the nearest that do: {nearest}"
                )
        return images.shape[1] // self.patch_size, images.shape[2] // self.patch_size

    def __call__(self, images):
        patches = self.conv(images)  # [B, h, w, C]
        return patches.reshape(patches.shape[0], -1, patches.shape[-1])


def prepend(tokens, *prefixes):
    """Learned tokens, each `[C]` or `[n, C]`, in front of each image's tokens `[B, N, C]`."""
    prefix = jnp.concatenate([x.reshape(-1, tokens.shape[-1]) for x in prefixes])
    prefix = jnp.broadcast_to(prefix.astype(tokens.dtype), (tokens.shape[0], *prefix.shape))
    return jnp.concatenate([prefix, tokens], axis=1)


def resize_positions(positions, grid, *, learned, rule, num_prefix):
    """Position embeddings `[P + h0·w0, C]` on another grid: `[P + h·w, C]`.

    Args:
      positions: those of the P tokens in front stay as they are.
      grid: patches down and across, (h, w).
      learned: (h0, w0).
      rule: one of POSITION_RESIZES.
      num_prefix: P.
    """
    prefix, patches = positions[:num_prefix], positions[num_prefix:]
    if grid == learned:
        return positions
    if POSITION_RESIZES[rule] is None:
        resized = resize_to_corners(patches, grid, learned=learned)
    else:
        method, antialias, offset = POSITION_RESIZES[rule]
        resized = jax.image.scale_and_translate(
            patches.astype(jnp.float32).reshape(*learned, -1),
            (*grid, patches.shape[-1]),
            spatial_dims=(0, 1),
            scale=jnp.array([(n + offset) / n0 for n, n0 in zip(grid, learned)]),
            translation=jnp.zeros(2),
            method=method,
            antialias=antialias,
        )
    resized = resized.reshape(-1, patches.shape[-1]).astype(positions.dtype)
    return jnp.concatenate([prefix, resized])


def resize_to_corners(positions, grid, *, learned):
    """Position embeddings `[h0·w0, C]` on another grid, `[h·w, C]`, in float32.

    Bilinear, with the corner patches of both grids in the same places: the rule of Qwen-VL, and of
    Google's models, to which it is SciPy's `zoom` of order 1.

    Args:
      positions: of the patches, row by row.
      grid: patches down and across, (h, w).
      learned: (h0, w0).
    """
    down, across = (_hats(n, n0) for n, n0 in zip(grid, learned))
    grid = positions.astype(jnp.float32).reshape(*learned, -1)
    resized = jnp.einsum("hi,wj,ijc->hwc", down, across, grid, precision="highest")
    return resized.reshape(-1, positions.shape[-1])


def _hats(size, learned) -> np.ndarray:
    """Weights float32 `[size, learned]` that interpolate an axis from end to end."""
    places = np.arange(size) * (learned - 1) / max(size - 1, 1)
    distances = np.abs(places[:, None] - np.arange(learned))
    return np.maximum(1 - distances, 0).astype(np.float32)
