"""Images as SigLIP 2 NaFlex takes them: sizes by a budget of patches, and batches of patches.

Shape letters: B images, N patches of an image with its padding, h and w patches down and across,
P pixels along a patch.
"""

import dataclasses
import math

import jax
import numpy as np

from ..configs import check_positive

_CLOSE = 1e-5  # of scales of an image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Patches:
    """Images of several sizes, as the processor of transformers gives them.

    Attributes:
      pixels: floats `[B, N, P·P·3]`, `pixel_values`: patches row by row, each so as well, and
        colours last; whatever it is on padding.
      mask: bool `[B, N]`, `pixel_attention_mask`: True on the h·w patches of the image, which come
        first.
      shapes: int `[B, 2]`, `spatial_shapes`: (h, w).
    """

    pixels: jax.Array
    mask: jax.Array
    shapes: jax.Array


@dataclasses.dataclass(frozen=True)
class PatchBudget:
    """The largest size in an image's own aspect ratio that has at most so many patches.

    Attributes:
      patch_size: P, which height and width are multiples of.
      most: patches of an image.
    """

    patch_size: int
    most: int

    def __post_init__(self):
        check_positive(self, "patch_size", "most")

    def size(self, height, width) -> tuple[int, int]:
        """Height and width to resize an image to, found as the original finds them: by halving."""
        low, high = _CLOSE / 10, 100.0  # as many times as large
        while high - low >= _CLOSE:
            scale = (low + high) / 2
            fits = math.prod(self._patches(scale, height, width)) <= self.most
            low, high = (scale, high) if fits else (low, scale)
        return tuple(n * self.patch_size for n in self._patches(low, height, width))

    def _patches(self, scale, *sides):
        return tuple(max(1, math.ceil(side * scale / self.patch_size)) for side in sides)


def pack_patches(images, *, patch_size, num_patches) -> Patches:
    """Preprocessed images of any sizes as one padded batch, in numpy.

    Args:
      images: floats `[height, width, 3]` each, as a `Preprocessor` with a `PatchBudget` gives them.
      patch_size: P.
      num_patches: N, of the longest at least.

    Raises:
      ValueError: no images, a side that does not divide by the patch, or more patches than N.
    """
    images = [np.asarray(image, np.float32) for image in images]
    if not images:
        raise ValueError("there are no images to pack: give at least one")
    pixels = np.zeros((len(images), num_patches, 3 * patch_size**2), np.float32)
    mask = np.zeros((len(images), num_patches), bool)
    shapes = np.zeros((len(images), 2), np.int32)
    for i, image in enumerate(images):
        height, width, _ = image.shape
        grid = height // patch_size, width // patch_size
        count = math.prod(grid)
        if height % patch_size or width % patch_size or not 1 <= count <= num_patches:
            raise ValueError(
                f"an image of {height} × {width} pixels is no 1 to {num_patches} patches of "
                f"{patch_size}: resize it to PatchBudget({patch_size}, {num_patches}).size"
            )
        cut = image.reshape(grid[0], patch_size, grid[1], patch_size, 3).swapaxes(1, 2)
        pixels[i, :count] = cut.reshape(count, -1)
        mask[i, :count], shapes[i] = True, grid
    return Patches(pixels, mask, shapes)
