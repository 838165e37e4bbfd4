"""Images and label maps to windows, windows to batches, and what is computed of them, by image."""

import collections
import dataclasses
import functools
import itertools

import jax
import numpy as np
import tqdm

from evals.data import (
    Tolerance,
    UnreadableImage,
    read_ahead,
    read_image,
    read_label_map,
    sensible_workers,
)
from evals.running.devices import gather, own_slots

_AHEAD = 16  # images


@dataclasses.dataclass(frozen=True)
class Sliced:
    """An image cut into windows.

    Attributes:
      row: which of the data it is.
      windows: float32 `[W, s, s, 3]`, preprocessed.
      canvas: height and width that it was cut at.
      label_map: uint8 `[height, width]`, at the image's own size.
    """

    row: int
    windows: np.ndarray
    canvas: tuple[int, int]
    label_map: np.ndarray


def over_windows(run, data, rows, preprocess, sliding, embedder, *, rng=None):
    """Yields the images, `Sliced`, each with the outputs `[W, …]` of its windows.

    Every process reads all images, and gets all outputs, in memory of the host. The next batch of
    windows is under way while one is looked at.

    Args:
      run: a function of windows `[B, s, s, 3]` and a key, of `evals.running.devices`.
      data: `SegmentedImages`.
      rows: which of them, in this order. Those that do not open are left out.
      preprocess: the checkpoint's; its normalisation and interpolation are used, not its size.
      sliding: how to cut.
      embedder: an `evals.running.embed.Embedder`, whose batches here are of windows, of one image
        or several.
      rng: a key; that of step k is folded with k.

    Raises:
      ValueError: too many images that do not open, a label map that does not fit its image, or
        outputs that are not finite.
    """
    sliced = _sliced_images(data, rows, preprocess, sliding, embedder.workers)
    batches = _window_batches(sliced, embedder.batch_size)
    waiting, outputs = collections.deque(), []
    with tqdm.tqdm(total=len(rows), desc="images", unit="img", leave=False, mininterval=1) as bar:
        for begun, of_windows in _computed(run, batches, rng):
            waiting.extend(begun)
            outputs.extend(of_windows)
            while waiting and len(outputs) >= len(waiting[0].windows):
                image = waiting.popleft()
                number = len(image.windows)
                yield image, np.stack(outputs[:number])
                del outputs[:number]
                bar.update()


def label_windows(image, sliding) -> np.ndarray:
    """The label map of a `Sliced` in its windows, uint8 `[W, s, s]`: of each pixel the nearest."""
    nearest = [
        ((np.arange(side) + 0.5) * size / side).astype(int)
        for side, size in zip(image.canvas, image.label_map.shape)
    ]
    return sliding.cut(image.label_map[np.ix_(*nearest)])


def _sliced_images(data, rows, preprocess, sliding, workers):
    """Yields the `Sliced` of the rows, read ahead of their use."""
    read = functools.partial(_read, data, preprocess, sliding)
    workers = sensible_workers(data.images) if workers is None else workers
    tolerance = Tolerance(len(data.images))
    for found in read_ahead(read, rows, ahead=_AHEAD, workers=workers):
        if isinstance(found, UnreadableImage):
            tolerance.add([found])
        else:
            yield found
    tolerance.close()


def _read(data, preprocess, sliding, row):
    """The `Sliced` of a row, or the error of an image or a label map that does not open."""

    def resized(image):
        to = dict(resize=sliding.canvas(*label_map.shape), crop=None, fit="fill")
        return dataclasses.replace(preprocess, **to)(image)

    try:
        label_map = read_label_map(data, row)
        pixels = read_image(data.images[row], resized)
    except UnreadableImage as error:
        return error
    return Sliced(row, sliding.cut(pixels), pixels.shape[:2], label_map)


def _window_batches(sliced, batch_size):
    """Yields windows `[B, s, s, 3]`, the number of real ones, and the images that begin in it."""
    windows, begun = [], []
    for image in sliced:
        begun.append(image)
        windows.extend(image.windows)
        while len(windows) >= batch_size:
            yield np.stack(windows[:batch_size]), batch_size, begun
            windows, begun = windows[batch_size:], []
    if windows:
        empty = [np.zeros_like(windows[0])] * (batch_size - len(windows))
        yield np.stack(windows + empty), len(windows), begun


def _computed(run, batches, rng):
    """Yields the images begun in each batch, and the outputs of its windows, one step behind."""
    pending = None
    for index, batch in enumerate(itertools.chain(batches, [None])):
        step = None
        if batch is not None:
            windows, number, begun = batch
            key = None if rng is None else jax.random.fold_in(rng, index)
            step = begun, number, run(own_slots(windows), key)
        if pending is not None:
            begun, number, outputs = pending
            yield begun, _finite(gather(outputs)[:number])
        pending = step


def _finite(outputs):
    if not np.isfinite(outputs).all():
        raise ValueError(
            "what the model says of the patches holds NaN or infinity; check the weights "
            "(python -m convert names such tensors), or compute in float32"
        )
    return outputs
