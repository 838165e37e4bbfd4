"""V-JEPA 2 and its videos against transformers: other lengths, an image, and preprocessing."""

import numpy as np
import pytest

import convert
from convert.originals import import_torch
from models.inputs.preprocessing import load_preprocessor
from tests import zoo
from tests.conftest import random_images, rel_max_error
from tests.models.inputs.test_preprocessing_live import LEVEL, noise, smooth

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("num_frames", [1, 2, 10, 64])
def test_lengths_that_it_was_not_made_for(transformers, tmp_path, num_frames):
    """Of its 8 frames: the published 64, and one, which transformers makes two."""
    folder = zoo.write("vjepa2_hf", tmp_path / "source")
    original = transformers.VJEPA2Model.from_pretrained(folder).eval()
    frames = random_images(3, batch=num_frames)
    pixels = import_torch().from_numpy(np.moveaxis(frames, -1, 1)[None].copy())
    with import_torch().no_grad():
        expected = original(pixel_values_videos=pixels, skip_predictor=True).last_hidden_state
    images = frames if num_frames == 1 else frames[None]
    tokens = convert.load_pretrained(folder)(images).tokens
    assert rel_max_error(tokens, expected.numpy()) < 1e-5  # measured: 1e-6


@pytest.mark.parametrize(
    "settings",
    [{}, {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}}],
    ids=["published", "small"],
)
@pytest.mark.parametrize("size", [(60, 83), (240, 320), (90, 40)])
def test_videos_are_prepared_as_transformers_does(transformers, tmp_path, settings, size):
    transformers.VJEPA2VideoProcessor(**settings).save_pretrained(tmp_path)
    original = transformers.VJEPA2VideoProcessor.from_pretrained(tmp_path)
    preprocess = load_preprocessor(tmp_path)
    video = np.stack([np.asarray(smooth(size)), noise(*size, 3).astype(np.uint8)])
    expected = original(np.moveaxis(video, -1, 1), return_tensors="np")["pixel_values_videos"][0]
    found = preprocess.video(video)
    assert found.shape == (2, *found.shape[1:3], 3)
    difference = (found - np.moveaxis(expected, 1, -1)) * np.array(preprocess.std, np.float32)
    assert np.abs(difference).max() <= LEVEL + 1e-6
