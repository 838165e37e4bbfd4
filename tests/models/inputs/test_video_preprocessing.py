"""The preprocessing of Qwen3-VL's videos by the files that checkpoints are published with."""

import json

import pytest

from models.inputs.preprocessor import Preprocessor
from models.inputs.qwen_images import PixelBudget
from models.inputs.video_preprocessing import load_video_preprocessor

HALF = (0.5,) * 3
PUBLISHED = {  # video_preprocessor_config.json of Qwen3-VL
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "video_processor_type": "Qwen3VLVideoProcessor",
}
BUDGET = PixelBudget(32, 4096, 25165824)
EXPECTED = Preprocessor(None, None, HALF, HALF, fit="fill", on_white=True, budget=BUDGET)


def load(folder, values, name="video_preprocessor_config.json"):
    (folder / name).write_text(json.dumps(values))
    return load_video_preprocessor(folder)


def test_both_files_are_read(tmp_path):
    assert load(tmp_path, PUBLISHED) == EXPECTED
    of_images = {"image_processor": {"image_processor_type": "Qwen2VLImageProcessor"}}
    assert load(tmp_path, of_images, "processor_config.json") == EXPECTED
    later = PUBLISHED | {"size": {"shortest_edge": 1024, "longest_edge": 2048}}
    (tmp_path / "video_preprocessor_config.json").unlink()
    both = of_images | {"video_processor": later | {"do_sample_frames": True, "fps": 2}}
    assert load(tmp_path, both, "processor_config.json").budget == PixelBudget(32, 1024, 2048)


def test_what_a_file_leaves_out_is_the_class_own(tmp_path):
    """131,072 pixels at least and 786,432 at most."""
    values = {"video_processor_type": "Qwen3VLVideoProcessor"}
    assert load(tmp_path, values).budget == PixelBudget(32, 2**17, 768 * 2**10)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"video_processor_type": "Qwen2VLVideoProcessor"}, "'Qwen2VLVideoProcessor' is not supp"),
        ({"do_pad": True}, "do_pad True is not supported"),
        ({"temporal_patch_size": 4}, "temporal_patch_size 4 is not supported"),
        ({"size": {"height": 32, "width": 32}}, "size.shortest_edge None is not supported"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"video_preprocessor_config\.json cannot .*{message}"):
        load(tmp_path, PUBLISHED | changes)


def test_a_folder_that_says_nothing_of_videos_is_named(tmp_path):
    for values in (None, {"image_processor": {}}):
        if values is not None:
            (tmp_path / "processor_config.json").write_text(json.dumps(values))
        with pytest.raises(FileNotFoundError, match="says nothing of videos in any of processor"):
            load_video_preprocessor(tmp_path)


@pytest.mark.parametrize(
    "frames, expected",
    [
        (4, (64, 96)),  # four times the pixels are still within the budget
        (5, (32, 64)),  # six frames are not; five of these sizes are what is divided
        (1, (64, 96)),
    ],
)
def test_the_budget_is_of_all_frames(frames, expected):
    """And of an image alone, of which no second frame counts."""
    budget = PixelBudget(32, 1024, 4 * 64 * 96)
    assert budget.size(64, 96, frames=frames) == expected
    least = PixelBudget(32, 4 * 64 * 96, 10**6)
    assert least.size(64, 96, frames=4) == (64, 96)
    assert least.size(64, 96) == (128, 192)
