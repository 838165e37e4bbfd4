"""Sliding windows: an image cut into overlapping squares, and their logits put together again.

Shape letters: W windows, s pixels of a window's side, h patches of it, K classes, y and x pixels.
Windows overlap, and where they do their logits are averaged.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

_PIXELS = 2**26  # more than this an enlarged image may not have
_ROWS = 64  # of pixels, labelled at a time
_COLUMNS = 128  # the multiple that widths are padded to, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Sliding:
    """How images are cut.

    Attributes:
      window: pixels of a window's side.
      stride: pixels from one window to the next, at most.
      short_side: of an image once resized; None keeps the image's size.

    An image whose short side is below `window` is enlarged until it is not.
    """

    window: int
    stride: int
    short_side: int | None = None

    def __post_init__(self):
        if not 1 <= self.stride <= self.window:
            raise ValueError(
                f"the stride must lie in 1..{self.window}, the window's side, got {self.stride}"
            )
        if self.short_side is not None and self.short_side < self.window:
            raise ValueError(
                f"short_side={self.short_side} is less than the window's side {self.window}"
            )

    def canvas(self, height, width):
        """Height and width that an image of this size is resized to.

        Raises:
          ValueError: an image so narrow that it would be enlarged beyond reason.
        """
        short = min(height, width)
        to = max(short, self.window) if self.short_side is None else self.short_side
        size = round(height * to / short), round(width * to / short)
        if to > short and math.prod(size) > _PIXELS:
            raise ValueError(f"{height} × {width} pixels are too narrow to be enlarged to {size}")
        return size

    def starts(self, side):
        """First pixels of the windows along a side of the canvas; the last window ends with it."""
        number = math.ceil((side - self.window) / self.stride) + 1
        return tuple(min(i * self.stride, side - self.window) for i in range(number))

    def cut(self, canvas):
        """Windows `[W, s, s, …]` of an array `[height, width, …]`, row by row."""
        ys, xs = (self.starts(side) for side in canvas.shape[:2])
        s = self.window
        return np.stack([canvas[y : y + s, x : x + s] for y in ys for x in xs])


def interpolation(n, size):
    """The matrix `[size, n]` of bilinear interpolation along one side, pixel centres at halves."""
    position = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(n)), 0).astype(np.float32)


@functools.lru_cache(maxsize=256)
def spreading(sliding, patches, side, size):
    """The matrix `[size, i·h]` from the patches of all windows to pixels, along one side.

    It interpolates each window's patches, averages the windows over the canvas, and interpolates
    the canvas.

    Args:
      sliding: how the image was cut.
      patches: h, of a window.
      side: of the canvas.
      size: of the result.
    """
    starts = sliding.starts(side)
    canvas = np.zeros((side, len(starts), patches), np.float32)
    for i, start in enumerate(starts):
        canvas[start : start + sliding.window, i] = interpolation(patches, sliding.window)
    canvas /= canvas.sum(axis=(1, 2), keepdims=True)  # the weights of one window sum to one
    return interpolation(side, size) @ canvas.reshape(side, -1)


def label_pixels(sliding, logits, canvas, size):
    """The class of every pixel of an image, uint8 `[y, x]`, not yet awaited on the device.

    Bilinear interpolation, the average over windows and the resizing to `size` are linear and
    separable: `logits[y, x] = Σ_ij rows[y, i] logits[i, j] columns[x, j]` over the patches of all
    windows.

    Args:
      sliding: how the image was cut.
      logits: `[W, h, h, K]`, of its windows.
      canvas: the height and width that it was cut at.
      size: the height and width of the result.
    """
    _, h, _, num_classes = logits.shape
    down, across = (len(sliding.starts(side)) for side in canvas)
    logits = logits.reshape(down, across, h, h, num_classes).swapaxes(1, 2)
    logits = logits.reshape(down * h, across * h, num_classes)
    rows, columns = (spreading(sliding, h, *sides) for sides in zip(canvas, size))
    labels = _label_pixels(_padded(rows, _ROWS), _padded(columns, _COLUMNS), logits)
    return labels[: size[0], : size[1]]


def _padded(matrix, multiple):
    return np.pad(matrix, ((0, -len(matrix) % multiple), (0, 0)))


@jax.jit
def _label_pixels(rows, columns, logits):
    """A few rows at a time: logits of all classes for all pixels would not fit."""
    product = functools.partial(jnp.einsum, precision="highest")

    def label(rows):
        return jnp.argmax(product("xj,yjk->yxk", columns, product("yi,ijk->yjk", rows, logits)), -1)

    labels = jax.lax.map(label, rows.reshape(-1, _ROWS, rows.shape[1]))
    return labels.reshape(len(rows), len(columns)).astype(jnp.uint8)
