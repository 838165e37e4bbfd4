"""The embedded test sets: digit scenes as labelled and as captioned images."""

import numpy as np

from evals import digit_scenes
from evals.data.records import CaptionedImages, LabelledImages

# Seeds of the embedded test sets.
_SINGLE_SEED, _MULTIPLE_SEED = 1, 2


def single_digit_scenes(count) -> LabelledImages:
    """Embedded test scenes with one digit each, to be classified by it."""
    scenes = digit_scenes.make_scenes("test", count, seed=_SINGLE_SEED, num_digits=(1, 1))
    return LabelledImages(
        images=scenes.images,
        labels=scenes.digits.max(axis=1),
        class_names=digit_scenes.DIGIT_NAMES,
        templates=[digit_scenes.phrase("{}", place) for place in digit_scenes.PLACES],
    )


def multiple_digit_scenes(count) -> CaptionedImages:
    """Embedded test scenes with two to four digits each, no two with the same caption."""
    scenes = digit_scenes.make_scenes(
        "test", count, seed=_MULTIPLE_SEED, num_digits=(2, 4), distinct=True
    )
    return CaptionedImages(scenes.images, scenes.captions, np.arange(count))
