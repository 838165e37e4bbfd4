"""Images and videos as Qwen-VL models take them: sizes by a budget of pixels, and their patches.

Shape letters: B images, F frames, h and w patches down and across, p pixels along a patch.
"""

import dataclasses
import math

import numpy as np

from ..configs import check_positive

FRAMES = 2  # of a patch
_MOST_ELONGATED = 200


@dataclasses.dataclass(frozen=True)
class PixelBudget:
    """Sizes near an image's own, in its aspect ratio.

    Attributes:
      multiple: which height and width are of; patch times merger.
      least, most: pixels of an image, or of all frames of a video.
    """

    multiple: int
    least: int
    most: int

    def __post_init__(self):
        check_positive(self, "multiple", "least", "most")
        if self.least > self.most:
            raise ValueError(f"least {self.least} pixels are more than most {self.most}")

    def size(self, height, width, *, frames=None) -> tuple[int, int]:
        """Height and width to resize an image to, or the frames of a video, so many of them.

        Raises:
          ValueError: an image more than 200 times as long as wide.
        """
        given, used = (1, 1) if frames is None else (frames, frames + frames % FRAMES)
        if max(height, width) > _MOST_ELONGATED * min(height, width):
            raise ValueError(
                f"an image of {height} × {width} pixels is more than {_MOST_ELONGATED} times as "
                "long as wide: crop it"
            )
        rounded = [self.multiple * round(side / self.multiple) for side in (height, width)]
        if used * math.prod(rounded) > self.most:
            scale = math.sqrt(given * height * width / self.most)
            steps = (math.floor(side / scale / self.multiple) for side in (height, width))
            return tuple(max(self.multiple, step * self.multiple) for step in steps)
        if used * math.prod(rounded) < self.least:
            scale = math.sqrt(self.least / (given * height * width))
            steps = (math.ceil(side * scale / self.multiple) for side in (height, width))
            return tuple(step * self.multiple for step in steps)
        return tuple(rounded)


def frame_pairs(video):
    """A video `[F, height, width, 3]` as the tower takes it, `[⌈F / 2⌉, 2, height, width, 3]`.

    Attention stays inside a pair. An odd frame at the end is paired with itself.
    """
    frames = np.asarray(video)
    if frames.ndim != 4 or not len(frames):
        raise ValueError(f"a video must be frames [F, height, width, 3], got {list(frames.shape)}")
    frames = np.concatenate([frames, frames[len(frames) - len(frames) % FRAMES :]])
    return frames.reshape(-1, FRAMES, *frames.shape[1:])


def patches_of(images, *, patch_size, merge_size) -> np.ndarray:
    """Patches as transformers packs them, `[B·h·w, 3·2·p·p]`: `pixel_values` of its processors.

    The patches of a merger's square follow each other, its squares row by row.

    Args:
      images: `[B, height, width, 3]`, or pairs of frames `[B, 2, height, width, 3]`.
      patch_size: p.
      merge_size: patches along the side of a square.
    """
    pairs = np.asarray(images)
    if pairs.ndim == 4:
        pairs = np.repeat(pairs[:, None], FRAMES, axis=1)
    _, _, height, width, _ = pairs.shape
    cut = merge_size * patch_size
    squares = pairs.reshape(
        *(-1, FRAMES),
        *(height // cut, merge_size, patch_size),
        *(width // cut, merge_size, patch_size, 3),
    )
    # Pair, square down and across, patch down and across, then channel, frame and pixels.
    return squares.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, 3 * FRAMES * patch_size**2)


def images_of(patches, grids, *, patch_size, merge_size) -> list[np.ndarray]:
    """The inverse of `patches_of`: for each grid the pairs of frames `[t, 2, height, width, 3]`.

    Args:
      patches: `[Σ t·h·w, 3·2·p·p]`, `pixel_values` of transformers' processors.
      grids: (t, h, w) of each image or video, their `image_grid_thw`: pairs of frames, and patches
        down and across.
      patch_size, merge_size: as in `patches_of`.

    Raises:
      ValueError: other patches than the grids have.
    """
    patches, grids = np.asarray(patches), np.asarray(grids)
    expected = [int(grids.prod(axis=1).sum()), 3 * FRAMES * patch_size**2]
    if list(patches.shape) != expected:
        raise ValueError(f"the grids have patches {expected}, got {list(patches.shape)}")
    found, start = [], 0
    for pairs, down, across in grids.tolist():
        stop = start + pairs * down * across
        squares = patches[start:stop].reshape(
            *(pairs, down // merge_size, across // merge_size, merge_size, merge_size),
            *(3, FRAMES, patch_size, patch_size),
        )
        images = squares.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
        found.append(images.reshape(pairs, FRAMES, down * patch_size, across * patch_size, 3))
        start = stop
    return found
