"""Tokens and positions that are laid out for Qwen3-VL, against counts by hand."""

import numpy as np
import pytest

from models.inputs.preprocessor import Preprocessor
from models.inputs.prompts import Video
from models.inputs.qwen_images import PixelBudget
from models.inputs.qwen_prompts import look, make_prompts, timed
from tests.models.tiny_qwen_vl import IMAGE, SIDE, VIDEO, config

HALF = (0.5,) * 3
PREPROCESSOR = Preprocessor(None, None, HALF, HALF, budget=PixelBudget(SIDE, 256, 16 * 256))
MARK = "<|vision_start|><|video_pad|><|vision_end|>"


def plain(height, width, level=255):
    return np.full((height, width, 3), level, np.uint8)


def prompts_of(token_ids, images, **settings):
    return make_prompts(token_ids, images, config=config(), preprocessor=PREPROCESSOR, **settings)


def places(*parts):
    """Positions `[N, 3]`: of a text token by a number, of an image by (time, down, across)."""
    found = []
    for part in parts:
        time, down, across = (part, 1, 1) if isinstance(part, int) else part
        found += [(time, time + i, time + j) for i in range(down) for j in range(across)]
    return np.array(found)


def test_text_goes_on_behind_the_longer_side_of_an_image():
    prompts = prompts_of([[3, IMAGE, 4, IMAGE, 5]], [[plain(32, 48), plain(16, 16)]])
    expected = places(0, (1, 2, 3), 4, (5, 1, 1), 6)
    np.testing.assert_array_equal(prompts.positions[0], expected)
    np.testing.assert_array_equal(prompts.tokens[0], [3, *[IMAGE] * 6, 4, IMAGE, 5])
    np.testing.assert_array_equal(prompts.is_image[0], prompts.tokens[0] == IMAGE)
    assert [image.shape for image in prompts.images] == [(1, 32, 48, 3), (1, 16, 16, 3)]


def test_each_pair_of_frames_is_placed_as_an_image():
    """Behind a text of its time, so that no position says the time of a video."""
    video = Video((plain(32, 16),) * 3)
    prompts = prompts_of([[3, VIDEO, 4, VIDEO, IMAGE]], [[video, plain(16, 32)]])
    expected = places(0, (1, 2, 1), 3, (4, 2, 1), (6, 1, 2))
    np.testing.assert_array_equal(prompts.positions[0], expected)
    assert [image.shape for image in prompts.images] == [(2, 2, 32, 16, 3), (1, 16, 32, 3)]


def test_prompts_are_padded_on_the_left():
    images = [[plain(32, 32)], []]
    prompts = prompts_of([[IMAGE, 3], [4, 5]], images, length=7)
    np.testing.assert_array_equal(prompts.key_mask, np.arange(7) >= [[2], [5]])
    np.testing.assert_array_equal(prompts.positions[1, 5:], places(0, 1))
    alone = prompts_of([[IMAGE, 3]], images[:1])
    for name in ("tokens", "positions", "is_image"):
        actual, expected = (getattr(x, name)[0] for x in (prompts, alone))
        np.testing.assert_array_equal(actual[2:], expected)
        assert not actual[:2].any()
    with pytest.raises(ValueError, match="a prompt of 5 tokens cannot be padded to 4"):
        prompts_of([[IMAGE, 3]], images[:1], length=4)


def test_frames_have_the_size_that_the_budget_gives_them_all():
    """Of 16 squares: an image takes them all, of four frames each takes four."""
    image = plain(64, 64, 0)
    assert look(image, config(), PREPROCESSOR).shape == (1, 64, 64, 3)
    video = look(Video((image,) * 3), config(), PREPROCESSOR)
    assert video.shape == (2, 2, 32, 32, 3)
    np.testing.assert_array_equal(video, -1)


def test_times_are_written_before_each_pair_of_frames():
    text = f"see {MARK} and <|video_pad|>?"
    pairs = f"<0.2 seconds>{MARK}<1.0 seconds>{MARK}"
    expected = f"see <|vision_start|>{pairs}<|vision_end|> and <3.5 seconds>{MARK}?"
    assert timed(text, [[0, 0.5, 1.0], [3, 4]]) == expected
    assert timed("none", []) == "none"


@pytest.mark.parametrize(
    "seconds, message",
    [
        ([], "the text has 1 videos, but times of 0 are given"),
        ([[0], [1]], "the text has 1 videos, but times of 2"),
        ([[]], "a video has no frames"),
    ],
)
def test_times_that_do_not_fit_are_refused(seconds, message):
    with pytest.raises(ValueError, match=message):
        timed(MARK, seconds)


@pytest.mark.parametrize(
    "ids, images, message",
    [
        ([], [], "there are no prompts"),
        ([[3]], [], "1 prompts, but images for 0 of them"),
        ([[]], [[]], "prompt 0 is empty"),
        ([[31]], [[]], "prompt 0 has the token 31, but the model knows 0 to 30"),
        (
            [[3, IMAGE]],
            [[]],
            r"prompt 0 has 1 image tokens \(9\), but 0 images: write one for each",
        ),
        ([[3]], [[plain(16, 16)]], r"0 image tokens \(9\), but 1 images"),
        ([[3, VIDEO]], [[Video((plain(16, 16),) * 3)]], r"1 video tokens \(10\), but 2 pairs of f"),
        ([[VIDEO, IMAGE]], [[plain(16, 16), Video((plain(16, 16),))]], "in another order"),
        ([[VIDEO]], [[Video((plain(16, 16), plain(16, 32)))]], "frames of several sizes"),
        ([[3] * 85 + [IMAGE]], [[plain(64, 64)]], "prompt 0 has 101 tokens, 16 of them of its ima"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(ids, images, message):
    with pytest.raises(ValueError, match=message):
        prompts_of(ids, images)


def test_the_preprocessing_of_another_model_is_refused():
    other = Preprocessor(None, None, HALF, HALF, budget=PixelBudget(28, 784, 7840))
    with pytest.raises(
        ValueError, match=r"multiples of 28 pixels, but .* multiples of 16: not its"
    ):
        look(plain(28, 28), config(), other)
