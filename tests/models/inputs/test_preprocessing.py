import dataclasses
import io
import itertools
import re
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image

from models.inputs.preprocessing import Preprocessor

HALF = (0.5, 0.5, 0.5)
ZERO, ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CLIP = Preprocessor((32, 32), (32, 32), mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
LIBRARIES = ("transformers", "open_clip", "timm")


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height, width):
    return np.asarray(
        Image.fromarray(noise(4, 4)).resize((width, height), Image.Resampling.BICUBIC)
    )


def plain(**changes):
    """Neither resizes, crops nor normalises, but for the changes."""
    return dataclasses.replace(Preprocessor(None, None, mean=ZERO, std=ONE), **changes)


def test_without_resizing_it_is_the_formula():
    pixels = noise(5, 7)
    out = Preprocessor(resize=None, crop=None, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))(pixels)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(out, expected, atol=1e-6)
    assert out.dtype == np.float32


@pytest.mark.parametrize(
    ("fit", "shape"), [("cover", (32, 65, 3)), ("contain", (16, 32, 3)), ("fill", (32, 32, 3))]
)
def test_fits(fit, shape):
    assert plain(resize=(32, 32), fit=fit)(noise(40, 82)).shape == shape


@pytest.mark.parametrize("library", LIBRARIES)
def test_shorter_side_then_centre_crop(library):
    wide = smooth(40, 100)
    preprocess = dataclasses.replace(CLIP, library=library)
    out = preprocess(wide)
    middle = preprocess(wide[:, 30:70])  # 40 × 40 around the centre
    assert out.shape == (32, 32, 3)
    # The border sees other neighbours under the filter; the inside may not move by a pixel.
    assert (
        np.abs(out - middle)[:, 4:-4].max() < np.abs(np.roll(out, 1, 1) - middle)[:, 4:-4].max() / 3
    )


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("size", [(90, 200), (20, 31), (37, 185)])
@pytest.mark.parametrize("make", [noise, smooth])
def test_at_most_a_level_from_pillow(make, size, resample):
    pixels = make(*size)
    expected = np.asarray(Image.fromarray(pixels).resize((48, 48), resample), np.float32)
    out = plain(resize=(48, 48), fit="fill", resample=resample)(pixels)
    assert np.abs(out * 255 - expected).max() <= 1 + 1e-4
    for library in ("open_clip", "timm"):
        exact = plain(resize=(48, 48), fit="fill", resample=resample, library=library)(pixels)
        np.testing.assert_allclose(exact * 255, expected, atol=1e-4)


def test_without_levels_resizing_is_linear():
    preprocess = plain(resize=(9, 9), fit="fill", levels=False)
    white = Image.new("RGB", (5, 7), "white")
    pixels = smooth(7, 5)
    total = preprocess(pixels) + preprocess(255 - pixels)
    np.testing.assert_allclose(total, preprocess(white), atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_equals_its_rgb_conversion(mode):
    image = Image.fromarray(noise(40, 50)).convert(mode)
    np.testing.assert_array_equal(CLIP(image), CLIP(image.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_16_bits_is_not_white(suffix):
    file, pixels = io.BytesIO(), noise(40, 50)[..., 0]
    Image.fromarray(pixels.astype(np.uint16) * 256 + 7).save(file, suffix.replace("tif", "tiff"))
    with Image.open(file) as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(CLIP(image), CLIP(pixels))


def test_numbers_without_a_white_are_refused():
    pixels = noise(40, 50)[..., 0].astype(np.int32)
    np.testing.assert_array_equal(CLIP(Image.fromarray(pixels)), CLIP(pixels.astype(np.uint8)))
    for image in (Image.fromarray(pixels + 1), Image.fromarray(pixels.astype(np.float32))):
        with pytest.raises(ValueError, match="8 or 16 bits"):
            CLIP(image)


def test_transparent_pixels_on_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 255, 0))
    image.putpixel((1, 0), (0, 0, 255, 51))
    np.testing.assert_allclose(plain(on_white=True)(image), [[[1, 1, 1], [0.8, 0.8, 1]]], atol=1e-6)
    np.testing.assert_array_equal(plain()(image), [[[0, 0, 1], [0, 0, 1]]])


def test_open_clip_resizes_palettes_without_mixing_colours():
    image = Image.fromarray(noise(40, 50)).quantize(4)
    preprocess = plain(resize=(32, 32), library="open_clip")
    colours = {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    out = np.rint(preprocess(image) * 255).astype(int).reshape(-1, 3).tolist()
    assert {tuple(colour) for colour in out} <= colours


def test_floats_in_0_to_1_equal_uint8():
    pixels = noise(40, 50)
    np.testing.assert_array_equal(CLIP(pixels.astype(np.float32) / 255), CLIP(pixels))


@pytest.mark.parametrize("on_white", [False, True])
def test_exif_rotation_is_undone(on_white):
    preprocess = dataclasses.replace(CLIP, on_white=on_white)
    upright = Image.fromarray(smooth(40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90° clockwise
    file = io.BytesIO()
    upright.rotate(90, expand=True).save(file, "png", exif=exif)
    np.testing.assert_array_equal(preprocess(Image.open(file)), preprocess(upright))


STORED = {  # what a file of that orientation holds of pixels to be shown so
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, -1),
}


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpeg"])
@pytest.mark.parametrize("orientation", STORED)
def test_images_are_shown_upright(kind, orientation):
    shown, exif, file = noise(5, 3), Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"lossless": True, "quality": 100, "subsampling": 0, "exif": exif}
    stored = np.ascontiguousarray(STORED[orientation](shown))
    Image.fromarray(stored).save(file, kind, **options)
    with Image.open(file) as image:
        out = plain()(image) * 255
    assert out.shape == shown.shape
    assert np.abs(out - shown).max() <= (4 if kind == "jpeg" else 1e-4)  # JPEG rounds


TURNED = struct.pack(">HHIHxx", ExifTags.Base.Orientation, 3, 1, 6)  # an entry of EXIF


def odd_entries():
    """Entries of wrong types, counts and values, or which point nowhere."""
    tags = (
        "ImageDescription",
        "XResolution",
        "ResolutionUnit",
        "ExifOffset",
        "GPSInfo",
        "XMLPacket",
    )
    tags = [ExifTags.Base[name] for name in tags] + [0xFFFF]
    values = (0, 8, 2**32 - 1)  # itself, the directory, far out
    for tag, kind, count, value in itertools.product(tags, (*range(15), 99), (0, 1, 5), values):
        yield struct.pack(">HHII", tag, kind, count, value)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
def test_a_turn_does_not_depend_on_the_rest_of_the_exif():
    file, pixels = io.BytesIO(), smooth(2, 3)
    Image.fromarray(pixels).save(file, "jpeg", quality=100)
    jpeg = file.getvalue()
    with Image.open(file) as image:
        expected = plain()(image.transpose(Image.Transpose.ROTATE_270))
    wrong = []
    for odd, last in itertools.product(odd_entries(), (True, False)):
        entries = [odd, TURNED] if last else [TURNED, odd]
        exif = b"Exif\0\0MM\0*\0\0\0\10" + struct.pack(">H", 2) + b"".join(entries) + bytes(4)
        segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
        with Image.open(io.BytesIO(jpeg[:2] + segment + jpeg[2:])) as image:
            out = plain()(image)
        if out.shape != expected.shape or (out != expected).any():
            wrong.append((odd, last))
    assert not wrong


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged metadata
@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0MM",
        b"Exif\0\0XX\0*\0\0\0\10\0\1" + TURNED,
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\10\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\10\0\1" + struct.pack(">HHIHxx", 0x0112, 3, 1, 9),
        b"Exif\0\0MM\0*\0\0\0\10\0\1" + struct.pack(">HHI4s", 0x0112, 2, 2, b"6\0"),
        b"Exif\0\0MM\0*\0\0\0\10\0\1" + struct.pack(">HHII", 0x0112, 5, 1, 0xFFFFFFFF),
    ],
)
def test_without_a_readable_orientation_images_are_taken_as_they_are(exif):
    image = Image.fromarray(noise(2, 3))
    image.info["exif"] = exif
    np.testing.assert_array_equal(plain()(image), plain()(noise(2, 3)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_crop_larger_than_the_image_is_filled_with_black(library):
    preprocess = Preprocessor(None, (8, 8), mean=HALF, std=HALF, library=library)
    expected = np.full((8, 8, 3), -1, np.float32)
    expected[1:6, 1:7] = 1
    np.testing.assert_array_equal(preprocess(np.full((5, 6, 3), 255, np.uint8)), expected)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize(("height", "first"), [(4, 0), (5, 0), (6, 1), (8, 2)])
def test_centre_of_an_even_or_flat_excess(library, height, first):
    pixels = noise(height, 4)
    out = plain(crop=(4, 4), library=library)(pixels)
    np.testing.assert_allclose(out, pixels[first : first + 4] / 255, atol=1e-6)


@pytest.mark.parametrize(("library", "first"), [("transformers", 1), ("open_clip", 2), ("timm", 2)])
def test_centre_of_an_odd_excess_by_library(library, first):
    pixels = noise(4, 7)
    out = plain(crop=(4, 4), library=library)(pixels)
    np.testing.assert_allclose(out, pixels[:, first : first + 4] / 255, atol=1e-6)


@pytest.mark.parametrize("value", [-0.1, 255.0, np.nan])
def test_floats_outside_0_to_1_are_refused(value):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        CLIP(np.full((4, 4, 3), value, np.float32))


@pytest.mark.parametrize("shape", [(), (4,), (4, 4, 1), (4, 4, 4), (1, 4, 4, 3), (0, 4, 3), (4, 0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_other_shapes_are_refused(shape, dtype):
    with pytest.raises(ValueError, match=rf"not empty, got {re.escape(str(list(shape)))}"):
        CLIP(np.zeros(shape, dtype))


def test_arrays_without_channels_are_grey():
    grey = noise(40, 50)[:, :, 0]
    np.testing.assert_array_equal(CLIP(grey), CLIP(np.stack([grey] * 3, axis=-1)))


def test_arrays_of_other_types_are_refused():
    with pytest.raises(ValueError, match="int64"):
        CLIP(np.zeros((4, 4, 3), np.int64))


def test_another_size_scales_resizing_with_the_crop():
    image = smooth(50, 70)
    larger = dataclasses.replace(CLIP, resize=(64, 64), crop=(56, 56))
    np.testing.assert_array_equal(
        dataclasses.replace(CLIP, resize=(32, 32), crop=(28, 28)).at_size(56)(image), larger(image)
    )
    stretched = plain(resize=(20, 30), fit="fill")
    assert stretched.at_size(24)(image).shape == (24, 24, 3)
    assert plain(crop=(8, 8)).at_size(16)(image).shape == (16, 16, 3)
    with pytest.raises(ValueError, match="at least 1"):
        CLIP.at_size(0)
    with pytest.raises(ValueError, match="its own size"):
        plain(resize=(32, 32)).at_size(64)


def test_a_video_is_prepared_frame_by_frame():
    preprocess = Preprocessor((8, 8), (6, 6), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 12, 3)).astype(np.uint8)
    video = preprocess.video(frames)
    assert video.shape == (3, 6, 6, 3) and video.dtype == np.float32
    for prepared, frame in zip(video, frames):
        np.testing.assert_array_equal(prepared, preprocess(frame))
    np.testing.assert_array_equal(preprocess.video([Image.fromarray(x) for x in frames]), video)
    for wrong, message in ((frames[0], "F, height, width, 3"), (frames[:0], "at least one frame")):
        with pytest.raises(ValueError, match=message):
            preprocess.video(wrong)
