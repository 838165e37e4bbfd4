"""How an image is cut into tiles, and which of their features stand for it, in plain numbers.

Sizes and resolutions are (height, width) in pixels, grids rows and columns. An image is given as a
*base* tile, all of it squeezed to a square, and where it is tiled also in the best of some
resolutions, resized into it with padding around and cut into tiles.

Shape letters: T tiles, P patches along the side of a tile, F features of a tile, n tokens,
K features that a token is the weighted sum of.
"""

import dataclasses
import math
import typing

import numpy as np

END = -1
_NOT_SHRUNK = 1.1  # OneVision's tolerance: the least ratio of sides at which it shrinks


class Packing(typing.NamedTuple):
    """The tokens of an image as weighted sums of its tiles' features.

    Attributes:
      index: int32 `[n, K]` into the features `[T · F]` of its tiles, base first, row by row; END is
        the learned embedding that ends a row.
      weight: float32 `[n, K]`, of rows that sum to 1.
    """

    index: np.ndarray
    weight: np.ndarray

    def widened(self, terms) -> "Packing":
        """The same with more terms, K of them: those added have no weight."""
        added = ((0, 0), (0, terms - self.index.shape[1]))
        return Packing(*(np.pad(part, added) for part in self))


def best_resolution(size, resolutions) -> tuple[int, int]:
    """The one in which most pixels of the image survive; of equals the one that wastes least."""

    def pixels(resolution):
        scale = min(side / original for side, original in zip(resolution, size))
        fitted = math.prod(int(original * scale) for original in size)
        effective = min(fitted, math.prod(size))
        return effective, effective - math.prod(resolution)

    return max(resolutions, key=pixels)


def fitted_size(size, resolution) -> tuple[int, int]:
    """What an image is resized to in a resolution, in its own aspect ratio, rounded up."""
    (height, width), (to_height, to_width) = size, resolution
    if to_width / width < to_height / height:
        return min(math.ceil(height * (to_width / width)), to_height), to_width
    return to_height, min(math.ceil(width * (to_height / height)), to_width)


def margins(size, resolution) -> tuple[int, int]:
    """The padding above and to the left of an image of this size, centred in a resolution."""
    return tuple((outer - inner) // 2 for outer, inner in zip(resolution, size))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The tiles and tokens of images in LLaVA-NeXT and OneVision.

    Attributes:
      side: pixels of a tile, which is square.
      patches: P.
      resolutions: to choose from, multiples of `side`.
      most: OneVision's `anyres_max_…`: the features of more tiles than that are shrunk to as many;
        None to keep all.

    Raises:
      ValueError: no resolution, one that does not divide into tiles, or a number below one.
    """

    side: int
    patches: int
    resolutions: tuple[tuple[int, int], ...]
    most: int | None = None

    def __post_init__(self):
        if not self.resolutions:
            raise ValueError("an image is cut into tiles, but there is no resolution to choose")
        for resolution in self.resolutions:
            if len(resolution) != 2 or any(x < 1 or x % self.side for x in resolution):
                raise ValueError(
                    f"a resolution must be a height and a width that divide by the tiles' side "
                    f"{self.side}, got {resolution}"
                )
        if self.most is not None and self.most < 1:
            raise ValueError(f"features are shrunk to at least 1 tile, got {self.most}")

    def resolution(self, size) -> tuple[int, int]:
        """The pixels that an image of this size is resized and padded to."""
        return best_resolution(size, self.resolutions)

    def num_tiles(self, size) -> int:
        """T, the base included."""
        return 1 + math.prod(side // self.side for side in self.resolution(size))

    def unpadded(self, size) -> tuple[slice, slice]:
        """Rows and columns of the patches of all tiles, as one grid, that show the image.

        One more on a side where the padding does not halve.
        """
        (height, width), patches = size, self.patches
        rows, columns = (side // self.side * patches for side in self.resolution(size))
        if width / height > columns / rows:
            shown = int(round(height * (columns / width), 7))
            above = (rows - shown) // 2
            return slice(above, rows - above), slice(0, columns)
        shown = int(round(width * (rows / height), 7))
        left = (columns - shown) // 2
        return slice(0, rows), slice(left, columns - left)

    def shape(self, size) -> tuple[int, int]:
        """Rows and columns of tokens that the tiles give, without what ends a row."""
        rows, columns = (kept.stop - kept.start for kept in self.unpadded(size))
        if self.most is None:
            return rows, columns
        ratio = math.sqrt(rows * columns / (self.most * self.patches**2))
        if ratio <= _NOT_SHRUNK:
            return rows, columns
        return int(rows // ratio), int(columns // ratio)

    def num_tokens(self, size) -> int:
        """n: those of the base, then of every row and its end."""
        rows, columns = self.shape(size)
        return self.patches**2 + rows * (columns + 1)

    def packing(self, size) -> Packing:
        """The tokens of an image of this size; K is 4 where `most` may shrink them, else 1."""
        base = plain_packing(self.patches**2)
        return _joined(base, self._whole(size) if self.most is None else self._shrunk(size))

    def base_packing(self) -> Packing:
        """The tokens of an image whose base is all that is looked at, and the end of a row.

        OneVision takes images so that are several in one prompt.
        """
        base = plain_packing(self.patches**2)
        nothing = np.zeros((1, 0, 1 if self.most is None else 4))
        return _joined(base, _with_ends(nothing, nothing))

    def video_packing(self, num_frames) -> Packing:
        """The tokens of a video's frames, shrunk to half their sides, and one end behind the last.

        A frame is a base tile. OneVision takes videos so.
        """
        side, num_patches = math.ceil(self.patches / 2), self.patches**2
        patches = np.arange(num_patches).reshape(self.patches, self.patches)
        index, weight = _interpolated(patches, (side, side))
        frames = np.arange(num_frames)[:, None, None, None] * num_patches
        line = (1, num_frames * side**2, 4)
        index, weight = index + frames, np.broadcast_to(weight, (num_frames, *weight.shape))
        return _with_ends(index.reshape(line), weight.reshape(line))

    def _patches(self, size):
        """The places of the shown patches among the features, `[rows, columns]`."""
        rows, columns = self.unpadded(size)
        y, x = np.arange(rows.start, rows.stop)[:, None], np.arange(columns.start, columns.stop)
        across = self.resolution(size)[1] // self.side
        tile = 1 + y // self.patches * across + x // self.patches
        return (tile * self.patches + y % self.patches) * self.patches + x % self.patches

    def _whole(self, size):
        """Every shown patch, and the end of each row."""
        index = self._patches(size)[..., None]
        return _with_ends(index, np.ones(index.shape))

    def _shrunk(self, size):
        """As `_whole`, of patches interpolated to `shape`, between four each."""
        return _with_ends(*_interpolated(self._patches(size), self.shape(size)))


def plain_packing(num_features) -> Packing:
    """The features of one tile, as they are."""
    index = np.arange(num_features, dtype=np.int32)[:, None]
    return Packing(index, np.ones(index.shape, np.float32))


def _joined(base, tokens) -> Packing:
    """Two packings, the first with as many terms as the second."""
    base = base.widened(tokens.index.shape[1])
    return Packing(*map(np.concatenate, zip(base, tokens, strict=True)))


def _with_ends(index, weight) -> Packing:
    """Rows of tokens `[rows, columns, K]` as one line, each row with its end."""
    rows, _, terms = index.shape
    first = np.arange(terms) == 0
    index = np.concatenate([index, np.broadcast_to(END * first, (rows, 1, terms))], axis=1)
    weight = np.concatenate([weight, np.broadcast_to(first, (rows, 1, terms))], axis=1)
    index, weight = index.astype(np.int32), weight.astype(np.float32)
    return Packing(index.reshape(-1, terms), weight.reshape(-1, terms))


def _interpolated(patches, shape):
    """Four of the patches `[rows, columns]` and their weights for each of a grid, `[*shape, 4]`."""
    (y, by_y), (x, by_x) = map(_bilinear, patches.shape, shape)
    index = patches[y[:, None, :, None], x[None, :, None, :]]  # [rows, columns, 2, 2]
    weight = by_y[:, None, :, None] * by_x[None, :, None, :]
    return index.reshape(*shape, 4), weight.reshape(*shape, 4)


def _bilinear(size, new_size):
    """Neighbours and their weights, `[new_size, 2]` each, in a line of `size` pixels.

    Pixels are squares whose centres lie half a pixel inside; nothing is smoothed before shrinking.
    """
    place = np.maximum((np.arange(new_size) + 0.5) * size / max(new_size, 1) - 0.5, 0)
    lower = place.astype(np.int32)
    part = place - lower
    neighbours = np.stack([lower, np.minimum(lower + 1, size - 1)], axis=1)
    return neighbours, np.stack([1 - part, part], axis=1)
