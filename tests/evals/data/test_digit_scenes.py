import numpy as np
import pytest
from sklearn.datasets import load_digits

from evals.data import digit_scenes
from evals.data.digit_scenes import EMPTY, HALF, make_scenes


def test_equal_arguments_make_equal_scenes():
    one, two = make_scenes("test", 5, seed=3), make_scenes("test", 5, seed=3)
    np.testing.assert_array_equal(one.images, two.images)
    assert one.captions == two.captions
    assert not np.array_equal(one.images, make_scenes("test", 5, seed=4).images)


def test_train_and_test_share_no_handwriting():
    train, test = (digit_scenes._source(split)[0] for split in ("train", "test"))
    assert len(train) + len(test) == len(load_digits().target)
    # The UCI set holds no two equal images, so equality of pixels is identity of the specimen.
    together = np.concatenate([train, test]).reshape(-1, 64)
    assert len(np.unique(together, axis=0)) == len(together)


def test_captions_say_what_is_where():
    assert (
        digit_scenes.caption([7, EMPTY, EMPTY, 2])
        == "a seven at the top left and a two at the bottom right"
    )


@pytest.mark.parametrize("num_digits", [(1, 1), (2, 4), (4, 4)])
def test_number_of_digits_lies_in_the_range(num_digits):
    scenes = make_scenes("train", 200, seed=0, num_digits=num_digits)
    number = np.sum(scenes.digits != EMPTY, axis=1)
    assert (number.min(), number.max()) == num_digits


def test_labels_mark_the_digit_of_each_quadrant_and_ink_is_bright():
    scenes = make_scenes("train", 50, seed=0)
    for image, labels, digits in zip(scenes.images, scenes.labels, scenes.digits):
        quadrants = labels.reshape(2, HALF, 2, HALF).transpose(0, 2, 1, 3).reshape(4, HALF, HALF)
        for quadrant, digit in zip(quadrants, digits):
            expected = set() if digit == EMPTY else {digit + 1}
            assert set(np.unique(quadrant)) - {0} == expected
        assert image[labels > 0].mean() > 2 * image[labels == 0].mean()


def test_distinct_scenes_have_distinct_captions():
    scenes = make_scenes("test", 1000, seed=2, num_digits=(2, 4), distinct=True)
    assert len(scenes) == len(set(scenes.captions)) == 1000


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(split="validation", count=1, seed=0), "validation"),
        (dict(split="test", count=1, seed=0, num_digits=(0, 2)), "1..4"),
        (dict(split="test", count=1, seed=0, num_digits=(3, 2)), "1..4"),
        (dict(split="test", count=41, seed=0, num_digits=(1, 1), distinct=True), "40 distinct"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scenes(**arguments)
