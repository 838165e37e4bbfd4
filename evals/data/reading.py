"""Batches of preprocessed images, read ahead of the computation by threads or by processes."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib

import grain
import jax
import numpy as np
from absl import flags
from grain.experimental import ThreadPrefetchIterDataset

from evals.data.unreadable import Tolerance, UnreadableImage, read_image

_MOST_READERS = 16
# A process takes seconds to start; and on few cores threads read as fast, for Pillow decodes and
# resizes without the lock of Python.
_FEW_IMAGES, _FEW_CORES = 10_000, 4


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


def batches(images, preprocess, batch_size, *, skipped=None, part=(0, 1), start=0, workers=None):
    """Yields a `Batch` for every `batch_size` images, in order, however many workers read.

    Batch k has image `k · batch_size + b` in slot b. A batch in which no image opens is left out,
    unless several processes share the batches, which they do in step.

    Args:
      images: what `read_image` takes.
      preprocess: an image to float32 `[height, width, 3]`.
      batch_size: B.
      skipped: a list; images that do not open are left out, and their errors added to it. Without
        it they are named on stderr at the end, and more than 1 % of them are an error.
      part: `(index, count)` where `count` processes share each batch: the one of that index reads
        and gets `B / count` of the slots.
      start: the number of the first batch.
      workers: processes that read; 0: threads of this one; None: as images and cores suggest.

    Raises:
      ValueError: too many images that do not open, or images that differ in size once preprocessed.
    """
    index, count = part
    tolerance = Tolerance(len(images))
    if skipped is not None:
        tolerance = Tolerance(len(images), skipped, most=math.inf)
    shape = _first_shape(images, preprocess, tolerance.most)
    own = batch_size // count
    rows = np.arange(-(-len(images) // batch_size) * batch_size)
    rows = rows.reshape(-1, count, own)[start:, index].ravel()
    workers = sensible_workers(images) if workers is None else workers
    if workers:  # paths take pickle sixty times longer than texts
        images = [str(item) if isinstance(item, pathlib.Path) else item for item in images]
    read = read_ahead(
        functools.partial(_read, images, preprocess),
        rows,
        ahead=own,
        workers=workers,
        batch=(own, functools.partial(_assemble, images=images, shape=shape)),
    )
    with contextlib.closing(read):  # here: collected as garbage, it may be by a thread of its own
        for batch, errors in read:
            tolerance.add(errors)
            if batch is not None and (count > 1 or batch.real.any()):
                yield batch
    if skipped is None:
        tolerance.close()


def read_ahead(read, rows, *, ahead, workers=0, batch=None):
    """Yields `read(row)` of every row, in order, while further rows are read.

    Args:
      read: a function of a row, to be pickled if processes read; may not give None.
      rows: a sequence.
      ahead: how many rows, at least.
      workers: processes that read; 0: threads of this one.
      batch: `(size, function)`: yields the function's value of every list of `size` results.
    """
    threads = 2 if workers else min(_MOST_READERS, 2 * os.cpu_count())
    buffer = max(threads, math.ceil(ahead / max(workers, 1)))
    data = grain.MapDataset.source(rows).map(read)
    data = data.to_iter_dataset(grain.ReadOptions(threads, buffer))
    if workers:
        if not flags.FLAGS.is_parsed():  # grain asks for flags of its own
            flags.FLAGS.mark_as_parsed()
        data = data.mp_prefetch(grain.MultiprocessingOptions(workers, buffer))
    if batch is not None:
        size, assemble = batch
        data = data.batch(size, batch_fn=assemble)
        data = ThreadPrefetchIterDataset(data, prefetch_buffer_size=1)
    iterator = iter(data)
    try:
        yield from iterator
    finally:
        iterator.close()


def sensible_workers(images) -> int:
    """How many processes read them fastest."""
    few = len(images) < _FEW_IMAGES or os.cpu_count() <= _FEW_CORES
    return 0 if few or isinstance(images[0], np.ndarray) else min(_MOST_READERS, os.cpu_count())


def _read(images, preprocess, row):
    """The row and its image, preprocessed, or the error of it, or None past the last one."""
    if row >= len(images):
        return row, None
    try:
        return row, read_image(images[row], preprocess)
    except UnreadableImage as error:
        return row, error


def _first_shape(images, preprocess, most):
    """Of the first image that opens, preprocessed; None where more than `most` do not."""
    for row in range(min(len(images), most + 1)):
        found = _read(images, preprocess, row)[1]
        if isinstance(found, np.ndarray):
            return found.shape
    return None


def _assemble(found, *, images, shape):
    """The batch of what `_read` gave for its slots, None without shape, and the errors in it."""
    errors = [result for _, result in found if isinstance(result, UnreadableImage)]
    if shape is None:
        return None, errors
    batch = Batch(np.zeros((len(found), *shape), np.float32), np.full(len(found), -1))
    for slot, (row, result) in enumerate(found):
        if isinstance(result, np.ndarray):
            if result.shape != shape:
                raise ValueError(
                    f"{_name(images[row])} is {_size(result.shape)} after preprocessing, others "
                    f"are {_size(shape)}: the images differ in size; the checkpoint's "
                    "preprocessing must crop or resize to one size"
                )
            batch.images[slot], batch.rows[slot] = result, row
    return batch, errors


def _name(item):
    return "an image" if isinstance(item, np.ndarray) else str(item)


def _size(shape):
    return "×".join(map(str, shape[:2]))
