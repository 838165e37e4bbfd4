"""Batches of preprocessed images, read ahead of the computation."""

import concurrent.futures
import dataclasses

import jax
import numpy as np
from PIL import Image

_READERS = 4  # threads that decode images


class UnreadableImage(ValueError):
    """An image that does not open: its path in `file`, the cause in `reason`."""

    def __init__(self, file, cause):
        self.file, self.reason = str(file), str(cause)
        super().__init__(f"{file} cannot be read as an image: {cause}")


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch of fixed size, with slots that may be empty.

    Attributes:
      images: float32 `[B, height, width, 3]`, zeros in empty slots.
      rows: int `[B]`, which image of the data is in each slot; -1: none (it did not open, or the
        data are at their end).
    """

    images: np.ndarray
    rows: np.ndarray

    @property
    def real(self) -> np.ndarray:
        """bool `[B]`, the slots that hold an image."""
        return self.rows >= 0

    def select(self, tree):
        """Arrays `[B, …]` of a pytree without the empty slots, in memory of the host."""
        return jax.tree.map(lambda x: np.asarray(x)[self.real], tree)


def batches(images, preprocess, batch_size, *, skipped=None):
    """Yields a `Batch` for every `batch_size` images, in order; the next is read while one is used.

    Batch k has image `k · batch_size + b` in slot b. A batch in which no image opens is left out.

    Args:
      images: paths, or uint8 arrays `[height, width, 3]`.
      preprocess: an image to float32 `[height, width, 3]`.
      batch_size: B.
      skipped: a list; images that do not open are left out, and their errors added to it.

    Raises:
      ValueError: an image that does not open, or images that differ in size once preprocessed.
    """
    starts = range(0, len(images), batch_size)
    with (
        concurrent.futures.ThreadPoolExecutor(_READERS) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as ahead,
    ):

        def read(start):
            items = images[start : start + batch_size]
            arrays = list(pool.map(lambda item: _read(item, preprocess), items))
            for error in (array for array in arrays if isinstance(array, UnreadableImage)):
                if skipped is None:
                    raise error
                skipped.append(error)
            return _stack(arrays, start, batch_size)

        upcoming = None
        for start in starts:
            batch = upcoming.result() if upcoming else read(start)
            following = start + batch_size
            upcoming = ahead.submit(read, following) if following < len(images) else None
            if batch is not None:
                yield batch


def _read(item, preprocess):
    """The preprocessed image, or why there is none."""
    if isinstance(item, np.ndarray):
        return preprocess(item)
    try:
        with Image.open(item) as image:
            return preprocess(image)
    except Exception as error:  # Pillow raises many types on damaged and hostile files
        return UnreadableImage(item, error)


def _stack(arrays, start, batch_size):
    """The batch of these arrays and errors, the first of which is image `start`; None if empty."""
    found = {slot: array for slot, array in enumerate(arrays) if isinstance(array, np.ndarray)}
    if not found:
        return None
    shapes = {array.shape for array in found.values()}
    if len(shapes) > 1:
        raise ValueError(
            f"the images differ in size after preprocessing: {sorted(shapes)}; the checkpoint's "
            "preprocessing must crop or resize to one size"
        )
    images = np.zeros((batch_size, *shapes.pop()), np.float32)
    rows = np.full(batch_size, -1)
    for slot, array in found.items():
        images[slot], rows[slot] = array, start + slot
    return Batch(images, rows)
