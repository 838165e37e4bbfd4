"""Sizes within a budget of pixels, and patches in transformers' order."""

import itertools
import math

import numpy as np
import pytest

from models.inputs.preprocessing import load_preprocessor
from models.inputs.preprocessor import Preprocessor
from models.inputs.qwen_images import PixelBudget, frame_pairs, images_of, patches_of
from tests.conftest import random_images
from tests.models.inputs.test_preprocessing_files import load_transformers, refused

BUDGET = PixelBudget(32, 65536, 16777216)
CUT = dict(patch_size=4, merge_size=2)
PUBLISHED = {  # preprocessor_config.json of Qwen3-VL
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "merge_size": 2,
    "patch_size": 16,
    "processor_class": "Qwen3VLProcessor",
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "temporal_patch_size": 2,
}


def test_sizes_are_near_the_images_own_and_within_the_budget():
    rng = np.random.default_rng(0)
    for height, width in (10 ** rng.uniform(1, 4, (500, 2))).astype(int).tolist():
        if max(height, width) > 200 * min(height, width):
            continue
        fitted, area = BUDGET.size(height, width), height * width
        assert all(side % 32 == 0 and side for side in fitted)
        if min(fitted) > 32:  # a side of one step cannot shrink
            assert BUDGET.least <= math.prod(fitted) <= BUDGET.most
        scales = 1, math.sqrt(BUDGET.least / area), math.sqrt(BUDGET.most / area)
        assert any(
            all(abs(side - scale * of) < 32 for side, of in zip(fitted, (height, width)))
            for scale in scales
        )


@pytest.mark.parametrize(
    "size, expected",
    [
        ((512, 768), (512, 768)),
        ((2160, 3840), (2176, 3840)),  # 67.5 steps, halves to even
        ((48, 80), (224, 352)),
        ((6000, 6000), (4096, 4096)),
    ],
)
def test_sizes_by_hand(size, expected):
    assert BUDGET.size(*size) == expected


def test_what_no_budget_fits_is_refused():
    with pytest.raises(ValueError, match=r"10 × 2001 .* 200 times"):
        BUDGET.size(10, 2001)
    with pytest.raises(ValueError, match="least 5 pixels are more than most 4"):
        PixelBudget(1, 5, 4)
    with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
        PixelBudget(0, 1, 2)


def test_patches_are_in_the_order_of_the_mergers():
    """Against loops: squares row by row, their patches, then channels, frames and pixels."""
    pairs = random_images(batch=4, height=8, width=16).reshape(2, 2, 8, 16, 3)
    expected = [
        pair[:, i + k : i + k + 4, j + m : j + m + 4].transpose(3, 0, 1, 2).ravel()
        for pair in pairs
        for i, j, k, m in itertools.product((0,), (0, 8), (0, 4), (0, 4))
    ]
    np.testing.assert_array_equal(patches_of(pairs, **CUT), expected)


def test_images_are_what_their_patches_show():
    images = random_images(batch=2, height=8, width=16)
    video = random_images(batch=4, height=16, width=8).reshape(2, 2, 16, 8, 3)
    patches = np.concatenate([patches_of(x, **CUT) for x in (images, video)])
    grids = np.array([[1, 2, 4], [1, 2, 4], [2, 4, 2]])
    first, second, again = images_of(patches, grids, **CUT)
    for shown, image in zip((first, second), images):
        np.testing.assert_array_equal(shown, np.stack([image, image])[None])
    np.testing.assert_array_equal(again, video)
    with pytest.raises(ValueError, match=r"\[32, 96\], got \[31, 96\]"):
        images_of(patches[1:], grids, **CUT)


@pytest.mark.parametrize(
    "num_frames, pairs", [(1, [(0, 0)]), (4, [(0, 1), (2, 3)]), (3, [(0, 1), (2, 2)])]
)
def test_frames_are_paired_in_turn(num_frames, pairs):
    video = random_images(batch=num_frames, height=2, width=2)
    np.testing.assert_array_equal(frame_pairs(video), video[np.array(pairs)])


def test_a_video_without_frames_is_refused():
    with pytest.raises(ValueError, match=r"frames \[F, height, width, 3\], got \[0, 2, 2, 3\]"):
        frame_pairs(np.zeros((0, 2, 2, 3)))


def test_the_published_file_is_read(tmp_path):
    half = (0.5, 0.5, 0.5)
    expected = Preprocessor(None, None, half, half, fit="fill", on_white=True, budget=BUDGET)
    assert load_transformers(tmp_path, PUBLISHED) == expected
    assert expected(np.zeros((300, 201, 3), np.uint8)).shape == (320, 224, 3)
    older = PUBLISHED | {"min_pixels": 4096, "max_pixels": 8192}
    assert load_transformers(tmp_path, older).budget == PixelBudget(32, 4096, 8192)
    assert load_transformers(tmp_path, PUBLISHED | {"do_resize": False}).budget is None
    with pytest.raises(ValueError, match="leaves each image its own size"):
        load_preprocessor(tmp_path).side()


@pytest.mark.parametrize(
    "field, value",
    [
        ("temporal_patch_size", 1),
        ("size", {"shortest_edge": 3.5, "longest_edge": 4}),
        ("size", 224),
        ("size", {"height": 3, "width": 4}),
        ("patch_size", "16"),
        ("merge_size", None),
        ("min_pixels", 2**40),
    ],
)
def test_other_files_are_refused(tmp_path, field, value):
    word = "least" if field == "min_pixels" else field
    refused(tmp_path, word, preprocessor_config=PUBLISHED | {field: value})
