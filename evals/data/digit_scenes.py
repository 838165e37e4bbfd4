"""Digit scenes: real handwriting in the quadrants of a small canvas, made from one seed.

Each scene holds one to four handwritten digits (the UCI digits that ship inside scikit-learn),
enlarged, jittered, on a textured background; with it come a caption and a per-pixel label map
(and questions, by `scene_questions.py`). Test scenes are made from digits that training scenes
never show.
"""

import dataclasses
import functools
import math

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

CANVAS = 64  # pixels
HALF = CANVAS // 2
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = ("top left", "top right", "bottom left", "bottom right")
EMPTY = -1
_NUMBER_OF_TEST_DIGITS = 500
_SMALLEST, _LARGEST = 22, 30  # side of an enlarged digit, pixels
_INK_THRESHOLD = 0.3  # of full ink, above which a pixel belongs to its digit


@dataclasses.dataclass(frozen=True)
class Scenes:
    """M scenes.

    Attributes:
      images: uint8 `[M, 64, 64, 3]`.
      digits: int `[M, 4]`, the digit at each of `PLACES`, or `EMPTY`.
      labels: uint8 `[M, 64, 64]`, 0 on background, else 1 + the digit.
    """

    images: np.ndarray
    digits: np.ndarray
    labels: np.ndarray

    def __len__(self):
        return len(self.images)

    @property
    def captions(self) -> list[str]:
        """One sentence per scene: "a seven at the top left and a two at the bottom right"."""
        return [caption(digits) for digits in self.digits]


def caption(digits) -> str:
    """The sentence for four digits or `EMPTY`, in the order of `PLACES`."""
    parts = [phrase(DIGIT_NAMES[d], place) for d, place in zip(digits, PLACES) if d != EMPTY]
    return " and ".join(parts)


def phrase(name, place) -> str:
    """One digit at one place: "a seven at the top left"."""
    return f"a {name} at the {place}"


def make_scenes(split, count, *, seed, num_digits=(1, 4), distinct=False) -> Scenes:
    """`count` scenes, the same for the same arguments.

    Args:
      split: "train" or "test", the source of the handwriting.
      count: M.
      seed: what `numpy.random.default_rng` takes.
      num_digits: fewest and most digits in a scene.
      distinct: no two scenes share a caption, so that retrieval has one right answer.

    Raises:
      ValueError: an unknown split, a number of digits outside 1..4, or more distinct scenes than
        there are captions.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    fewest, most = num_digits
    if not 1 <= fewest <= most <= len(PLACES):
        raise ValueError(f"num_digits must lie in 1..{len(PLACES)}, got {num_digits}")
    rng = np.random.default_rng(seed)
    digits = _draw_digits(rng, count, fewest, most)
    if distinct:
        possible = sum(math.comb(4, number) * 10**number for number in range(fewest, most + 1))
        if count > possible:
            raise ValueError(f"there are {possible} distinct captions, fewer than {count}")
        digits = _distinct_rows(rng, digits, fewest, most)
    ink = _draw_ink(rng, split, digits)
    return Scenes(_paint(rng, ink), digits, _label(ink, digits))


def _draw_digits(rng, count, fewest, most):
    number = rng.integers(fewest, most + 1, size=(count, 1))
    rank = rng.permuted(np.tile(np.arange(len(PLACES)), (count, 1)), axis=1)
    return np.where(rank < number, rng.integers(0, 10, size=rank.shape), EMPTY)


def _distinct_rows(rng, digits, fewest, most):
    count = len(digits)
    while len(digits := np.unique(digits, axis=0)) < count:
        digits = np.concatenate([digits, _draw_digits(rng, count - len(digits), fewest, most)])
    return rng.permutation(digits)


@functools.cache
def _source(split):
    """Handwriting of a split: images `[K, 8, 8]` in 0..1, and the rows that show each digit."""
    data = load_digits()
    train, test = train_test_split(
        np.arange(len(data.target)),
        test_size=_NUMBER_OF_TEST_DIGITS,
        stratify=data.target,
        random_state=0,
    )
    rows = train if split == "train" else test
    images, targets = data.images[rows].astype(np.float32) / 16, data.target[rows]
    return images, [np.flatnonzero(targets == digit) for digit in range(10)]


def _draw_ink(rng, split, digits):
    """Ink in 0..1, `[M, 64, 64]`: a random specimen of each digit, in its quadrant."""
    images, rows_of = _source(split)
    size = rng.uniform(_SMALLEST, _LARGEST, size=(*digits.shape, 2))  # height and width, jittered
    start = rng.uniform(0, 1, size=size.shape) * (HALF - size)
    pick = rng.integers(0, 2**31, size=digits.shape)
    specimen = np.zeros((*digits.shape, 8, 8), np.float32)  # [M, 4, 8, 8]
    for digit, rows in enumerate(rows_of):
        here = digits == digit
        specimen[here] = images[rows[pick[here] % len(rows)]]
    enlarge = _linear_resize(start, size, HALF, 8)  # [M, 4, 2, 32, 8]
    quadrants = enlarge[:, :, 0] @ specimen @ np.swapaxes(enlarge[:, :, 1], -1, -2)
    grid = quadrants.reshape(-1, 2, 2, HALF, HALF).transpose(0, 1, 3, 2, 4)
    return grid.reshape(-1, CANVAS, CANVAS)


def _linear_resize(start, size, num_out, num_in):
    """Matrices `[..., out, in]` that stretch `in` samples over `size` pixels from `start` on."""
    centre = np.arange(num_out) + 0.5
    position = (centre - start[..., None]) / size[..., None] * num_in - 0.5
    distance = np.abs(position[..., None] - np.arange(num_in))
    return np.maximum(1 - distance, 0).astype(np.float32)


def _paint(rng, ink):
    """Images uint8 `[M, 64, 64, 3]`: bright ink in a random tint over a dim, smooth texture."""
    count = len(ink)
    coarse = rng.uniform(0, 0.35, size=(count, 9, 9)).astype(np.float32)
    smooth = _linear_resize(np.array(-4.0), np.array(CANVAS + 8.0), CANVAS, 9)
    texture = (smooth @ coarse @ smooth.T)[..., None]
    background = texture * rng.uniform(0.5, 1, size=(count, 1, 1, 3)).astype(np.float32)
    colour = rng.uniform(0.7, 1, size=(count, 1, 1, 3)).astype(np.float32)
    ink = ink[..., None]
    image = background * (1 - ink) + colour * ink
    image += rng.normal(0, 0.02, size=image.shape).astype(np.float32)
    return np.clip(np.round(image * 255), 0, 255).astype(np.uint8)


def _label(ink, digits):
    """uint8 `[M, 64, 64]`: 0 on background, else 1 + the digit of the quadrant."""
    names = (digits + 1).reshape(-1, 2, 2).repeat(HALF, axis=1).repeat(HALF, axis=2)
    return np.where(ink > _INK_THRESHOLD, names, 0).astype(np.uint8)
