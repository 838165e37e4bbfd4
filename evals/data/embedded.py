"""The embedded data: digit scenes with labels, captions, and label maps.

Test scenes are made from digits that the training scenes never show.
"""

import numpy as np

from evals.data import digit_scenes
from evals.data.questions import Questions
from evals.data.records import CaptionedImages, LabelledImages, SegmentedImages, Split
from evals.data.scene_questions import KINDS, draw_questions

# Seeds of the embedded sets.
_SINGLE_SEED, _MULTIPLE_SEED, _SEGMENTED_SEED, _ASKED_SEED = 1, 2, 3, 4


def single_digit_scenes(count, *, split="test") -> LabelledImages:
    """Scenes with one digit each, to be classified by it."""
    scenes = digit_scenes.make_scenes(split, count, seed=_SINGLE_SEED, num_digits=(1, 1))
    return LabelledImages(
        images=scenes.images,
        labels=scenes.digits.max(axis=1),
        class_names=digit_scenes.DIGIT_NAMES,
        templates=[digit_scenes.phrase("{}", place) for place in digit_scenes.PLACES],
    )


def labelled_digit_scenes(num_train, num_test) -> Split:
    """So many of `single_digit_scenes` to train on, and to test with."""
    return Split(
        single_digit_scenes(num_train, split="train"), single_digit_scenes(num_test, split="test")
    )


def multiple_digit_scenes(count) -> CaptionedImages:
    """Test scenes with two to four digits each, no two with the same caption."""
    scenes = digit_scenes.make_scenes(
        "test", count, seed=_MULTIPLE_SEED, num_digits=(2, 4), distinct=True
    )
    return CaptionedImages(scenes.images, scenes.captions, np.arange(count))


def segmented_digit_scenes(num_train, num_test) -> Split:
    """Scenes with one to four digits and their label maps: the background, and ten digits."""

    def part(split, count):
        scenes = digit_scenes.make_scenes(split, count, seed=_SEGMENTED_SEED)
        names = ("background", *digit_scenes.DIGIT_NAMES)
        return SegmentedImages(scenes.images, scenes.labels, names)

    return Split(part("train", num_train), part("test", num_test))


def asked_digit_scenes(count) -> Questions:
    """So many questions about test scenes with one to four digits, about each one of each kind.

    Two places are compared only where they hold different digits.
    """
    scenes = digit_scenes.make_scenes("test", count, seed=_ASKED_SEED)
    rng, counts = np.random.default_rng(_ASKED_SEED), dict.fromkeys(KINDS, 1)
    asked = [
        (image, question)
        for image, digits in zip(scenes.images, scenes.digits)
        for question in draw_questions(digits, rng, counts)
    ][:count]
    return Questions(
        ids=range(len(asked)),
        texts=[question.text for _, question in asked],
        images=[image for image, _ in asked],
        answers=[(question.answer,) for _, question in asked],
        kinds=[question.kind for _, question in asked],
    )
