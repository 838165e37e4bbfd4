"""What the tasks evaluate on: images with labels, captions, or label maps."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """M images with class labels, and how to say a class in words.

    Attributes:
      images: M of what `evals.data.read_image` takes: paths, uint8 arrays `[height, width, 3]`.
      labels: int `[M]`.
      class_names: K names.
      templates: sentences with `{}` for the name; a class is their mean embedding.
      folders: K names of the folders that the classes lie in; None for data that number them.
    """

    images: Sequence
    labels: np.ndarray
    class_names: Sequence[str]
    templates: Sequence[str]
    folders: Sequence[str] | None = None

    def take(self, rows) -> "LabelledImages":
        """Those images alone; `rows` int, ascending."""
        images = [self.images[row] for row in rows]
        return dataclasses.replace(self, images=images, labels=self.labels[rows])


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """M images and L captions; an image may have several.

    Attributes:
      images: M of what `evals.data.read_image` takes: paths, uint8 arrays `[height, width, 3]`.
      captions: L sentences.
      image_of_caption: int `[L]`, the image that each caption describes.
    """

    images: Sequence
    captions: Sequence[str]
    image_of_caption: np.ndarray

    def take(self, rows) -> "CaptionedImages":
        """Those images alone, with their captions; `rows` int, ascending."""
        position = np.full(len(self.images), -1)
        position[rows] = np.arange(len(rows))
        kept = np.flatnonzero(position[self.image_of_caption] >= 0)
        return CaptionedImages(
            [self.images[row] for row in rows],
            [self.captions[caption] for caption in kept],
            position[self.image_of_caption[kept]],
        )


IGNORED = 255  # the label of pixels that count for nothing


@dataclasses.dataclass(frozen=True)
class SegmentedImages:
    """M images with a class for every pixel.

    Attributes:
      images: M of what `evals.data.read_image` takes: paths, uint8 arrays `[height, width, 3]`.
      label_maps: M paths of label images, or uint8 arrays `[height, width]`, for
        `evals.data.read_label_map`.
      class_names: K names.
      first_label: the value of class 0 in the label maps, whose next is that of class 1; pixels
        below it, and those of `IGNORED`, count for nothing.
    """

    images: Sequence
    label_maps: Sequence
    class_names: Sequence[str]
    first_label: int = 0


@dataclasses.dataclass(frozen=True)
class Split:
    """Data to train a head on (or to find neighbours in), and data to test with, one kind of both.

    Attributes:
      train, test: `LabelledImages` or `SegmentedImages` with the same classes.
    """

    train: Any
    test: Any
