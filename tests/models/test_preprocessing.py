import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from models.preprocessing import Preprocessor, load_preprocessor

HALF = (0.5, 0.5, 0.5)
CLIP = Preprocessor(resize=32, crop=32, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
OPENAI = {
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 32},
}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    return np.asarray(
        Image.fromarray(noise(4, 4)).resize((width, height), Image.Resampling.BICUBIC)
    )


@pytest.mark.parametrize("size", [224, {"shortest_edge": 224}, {"height": 224, "width": 224}])
def test_sizes_as_hugging_face_writes_them(tmp_path, size):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OPENAI | {"size": size}))
    square = isinstance(size, dict) and "height" in size
    expected = dataclasses.replace(CLIP, resize=224, keep_aspect=not square)
    assert load_preprocessor(tmp_path) == expected


def test_without_resizing_it_is_the_formula():
    pixels = noise(5, 7)
    out = Preprocessor(resize=None, crop=None, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(pixels)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype == np.float32


def test_shorter_side_without_a_crop_keeps_the_shape():
    uncropped = dataclasses.replace(CLIP, crop=None)
    assert uncropped(noise(40, 80)).shape == (32, 64, 3)
    assert dataclasses.replace(uncropped, keep_aspect=False)(noise(40, 80)).shape == (32, 32, 3)


def test_shorter_side_then_centre_crop():
    wide = smooth(40, 100)
    out = CLIP(wide)
    middle = CLIP(wide[:, 30:70])  # 40 × 40 around the centre
    assert out.shape == (32, 32, 3)
    # The border sees other neighbours under the filter; the inside may not move by a pixel.
    assert (
        np.abs(out - middle)[:, 4:-4].max() < np.abs(np.roll(out, 1, 1) - middle)[:, 4:-4].max() / 3
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_equals_its_rgb_conversion(mode):
    image = Image.fromarray(noise(40, 50)).convert(mode)
    np.testing.assert_array_equal(CLIP(image), CLIP(image.convert("RGB")))


def test_floats_in_0_to_1_equal_uint8():
    pixels = noise(40, 50)
    np.testing.assert_array_equal(CLIP(pixels.astype(np.float32) / 255), CLIP(pixels))


def test_exif_rotation_is_undone():
    upright = Image.fromarray(smooth(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90° clockwise
    file = io.BytesIO()
    upright.rotate(90, expand=True).save(file, "png", exif=exif)
    np.testing.assert_array_equal(CLIP(Image.open(file)), CLIP(upright))


def test_crop_larger_than_the_image_is_filled_with_black():
    out = Preprocessor(resize=None, crop=8, mean=HALF, std=HALF)(np.full((4, 6, 3), 255, np.uint8))
    expected = np.full((8, 8, 3), -1, np.float32)
    expected[2:6, 1:7] = 1
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": [0.5]},
        {"image_std": None},
        {"size": {"height": 3, "width": 4}},
        {"do_rescale": False},
        {"do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"size": None},
        {"size": 0},
        {"size": {"shortest_edge": "224"}},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_mean": [0.5, float("nan"), 0.5]},
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, change):
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(OPENAI | change))
    with pytest.raises(ValueError, match=r"preprocessor_config\.json cannot be used"):
        load_preprocessor(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "[" * 100_000])
def test_damaged_file_is_refused(tmp_path, text):
    (tmp_path / "preprocessor_config.json").write_text(text)
    with pytest.raises(ValueError, match="cannot be used"):
        load_preprocessor(tmp_path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        load_preprocessor(tmp_path)


@pytest.mark.parametrize("value", [-0.1, 255.0, np.nan])
def test_floats_outside_0_to_1_are_refused(value):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        CLIP(np.full((4, 4, 3), value, np.float32))


def test_arrays_of_other_types_are_refused():
    with pytest.raises(ValueError, match="int64"):
        CLIP(np.zeros((4, 4, 3), np.int64))
