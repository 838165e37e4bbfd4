"""Image tokens that are left out in front of the language model."""

import jax
import numpy as np
import pytest

from fna_jax import farthest_point_sampling
from models.image_tokens import ImageDropping, common_length
from models.llava import embed_prompts
from tests.conftest import rel_max_error
from tests.models.inputs.test_prompts import prompts_of
from tests.models.test_llava import TALL, WIDE
from tests.models.tiny_llava import IMAGE, tiny_llava

METHODS = ("farthest", "random")  # that there are in front of a model
IDS, IMAGES = [[3, IMAGE, 4, 5], [6, 7], [IMAGE, 8, IMAGE]], [[WIDE], [], [TALL, WIDE]]
apply = jax.jit(ImageDropping.apply, static_argnums=(0, 4))


@pytest.fixture(scope="module")
def prompts():
    return prompts_of("1.5", IDS, IMAGES)  # 16, none and 32 image tokens


@pytest.fixture(scope="module")
def batch(prompts):
    """Embeddings that number the tokens of each prompt, mask and which are of images."""
    random = np.random.default_rng(0).standard_normal((*prompts.tokens.shape, 2))
    random[..., 0] = np.arange(prompts.tokens.shape[1])
    return random.astype(np.float32), prompts.key_mask, np.asarray(prompts.is_image)


def left_of(dropping, batch):
    """The numbers of the tokens that are left of each prompt."""
    embeddings, key_mask, is_image = batch
    length = dropping.length(key_mask, is_image)
    left, others = apply(dropping, embeddings, {"key_mask": key_mask}, is_image, length)
    mask = others["key_mask"]
    assert left.shape[1] == length and mask.dtype == bool
    assert not np.any(np.diff(mask.astype(int), axis=1) < 0)  # padded on the left
    return [row[real].astype(int).tolist() for row, real in zip(np.asarray(left[..., 0]), mask)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kept", [1, 30, 50, 100])
def test_text_stays_and_the_share_of_the_image(batch, method, kept):
    _, key_mask, is_image = batch
    for row, numbers in enumerate(left_of(ImageDropping(kept, method), batch)):
        assert numbers == sorted(numbers)
        text = np.flatnonzero(key_mask[row] & ~is_image[row])
        image = [number for number in numbers if is_image[row, number]]
        assert set(numbers) == {*text.tolist(), *image}
        assert len(image) == int(np.ceil(kept / 100 * is_image[row].sum()))


def test_those_that_stay_lie_far_apart(batch):
    embeddings, _, is_image = batch
    left = left_of(ImageDropping(25, "farthest"), batch)
    for row, number in ((0, 4), (2, 8)):
        expected = farthest_point_sampling(embeddings[row], number, eligible=is_image[row])
        assert {n for n in left[row] if is_image[row, n]} == set(expected.tolist())


def test_random_ones_depend_on_the_seed(batch):
    first, again, other = (left_of(ImageDropping(50, "random", seed), batch) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("method", METHODS)
def test_with_all_of_them_nothing_changes(prompts, method):
    model = tiny_llava("1.5")
    expected, _ = embed_prompts(model, prompts)
    actual, others = embed_prompts(model, prompts, dropping=ImageDropping(100, method))
    np.testing.assert_array_equal(others["key_mask"], prompts.key_mask)
    real = prompts.key_mask[..., None]
    assert rel_max_error(actual * real, expected * real) < 1e-6


@pytest.mark.parametrize(
    "kept, method, message",
    [
        (0, "random", "kept must be percent of the image tokens, 1 to 100: 0"),
        (101, "random", "kept must be percent"),
        (0.5, "random", "kept must be percent"),
        (50, "fps", "method must be one of farthest, random, attention, got 'fps'"),
        (50, "attention", "there is no attention: give a block"),
    ],
)
def test_settings_out_of_range_raise(kept, method, message):
    with pytest.raises(ValueError, match=message):
        ImageDropping(kept, method)


def test_a_block_that_is_none_and_prompts_without_images_are_refused():
    for block in (-1, 1.0, True):
        with pytest.raises(
            ValueError, match=f"block must be a number from 0, or None, got {block}"
        ):
            ImageDropping(50, "attention", block=block)
    real = np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="there are no image tokens to keep 50 % of"):
        ImageDropping(50, "random").length(real, ~real)


def test_lengths_are_few_and_at_most_an_eighth_too_long():
    lengths = {number: common_length(number) for number in range(1, 5000)}
    assert all(n <= length for n, length in lengths.items())
    assert all(length - n < max(n / 8, 8) for n, length in lengths.items())
    assert (lengths[22], lengths[269], lengths[2928]) == (24, 288, 2944)
    assert len(set(lengths.values())) < 80
