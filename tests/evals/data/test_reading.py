"""Batches hold the right images in the right slots; what does not open is named and counted."""

import dataclasses
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from evals.data import UnreadableImage, batches, read_ahead, read_image
from evals.data.notices import say
from models.inputs.preprocessor import Preprocessor
from tests.evals.conftest import write_image

PREPROCESS = Preprocessor((32, 32), (32, 32), (0.5,) * 3, (0.5,) * 3)


def scenes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def levels(image):
    """Preprocessing that changes nothing."""
    return np.asarray(image, np.float32)


def files_in(folder, count, *, broken=()):
    """Paths of tiny images; the broken ones do not open."""
    paths = [folder / f"{index:03}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.new("RGB", (2, 2), (index % 256, 0, 0)).save(path)
        if index in broken:
            path.write_bytes(b"\x89PNG nothing more")
    return paths


@pytest.fixture(autouse=True)
def nothing_said():
    say.cache_clear()


@pytest.mark.parametrize("count, size", [(0, 3), (1, 1), (1, 3), (7, 3), (6, 3), (5, 8), (40, 3)])
def test_batches_keep_order_and_pad_the_last(count, size):
    images = scenes(count)
    read = list(batches(images, levels, size))
    rows = np.concatenate([np.full(0, -1), *(batch.rows for batch in read)])
    assert len(read) == -(-count // size) and len(rows) == size * len(read)
    np.testing.assert_array_equal(rows, [*range(count), *[-1] * (len(rows) - count)])
    for batch in read:
        np.testing.assert_array_equal(batch.select(batch.images), images[batch.rows[batch.real]])
        assert not batch.images[~batch.real].any()


@pytest.mark.slow
def test_processes_read_the_same(tmp_path):
    files = files_in(tmp_path, 23, broken=[4])
    errors, errors_there = [], []
    here = list(batches(files, PREPROCESS, 4, skipped=errors, workers=0))
    there = list(batches(files, PREPROCESS, 4, skipped=errors_there, workers=2))
    assert len(here) == len(there) == 6
    for one, other in zip(here, there):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.images, other.images)
    (one,), (other,) = errors, errors_there
    assert (one.file, one.reason) == (other.file, other.reason) == (str(files[4]), one.reason)


def test_parts_of_processes_make_the_whole_batch():
    images = scenes(9)
    whole = list(batches(images, levels, 4))
    parts = [list(batches(images, levels, 4, part=(index, 2))) for index in range(2)]
    assert {len(part) for part in parts} == {3}  # in step, though the last slots are empty
    for batch, *shares in zip(whole, *parts):
        np.testing.assert_array_equal(batch.rows, np.concatenate([x.rows for x in shares]))
        np.testing.assert_array_equal(batch.images, np.concatenate([x.images for x in shares]))


def test_reading_resumes_at_a_batch():
    images = scenes(11)
    for start in range(5):
        resumed = [batch.rows.tolist() for batch in batches(images, levels, 3, start=start)]
        assert resumed == [batch.rows.tolist() for batch in batches(images, levels, 3)][start:]


def test_one_in_a_hundred_may_fail_and_is_named(tmp_path, capfd):
    files = files_in(tmp_path, 100, broken=[42])
    for _ in range(2):
        read = list(batches(files, PREPROCESS, 8))
        np.testing.assert_array_equal(
            np.concatenate([x.rows[x.real] for x in read]), np.delete(np.arange(100), 42)
        )
    (line,) = capfd.readouterr().err.splitlines()  # once
    assert line.startswith("1 of 100 images do not open (") and "042.png: " in line


def test_more_fail_the_pass_but_not_if_they_are_collected(tmp_path):
    files = files_in(tmp_path, 100, broken=[0, 1, 2, 3, 98])
    with pytest.raises(ValueError, match=r"2 of 100 images do not open .*000\.png.*001\.png"):
        list(batches(files, PREPROCESS, 2))
    skipped = []
    read = list(batches(files, PREPROCESS, 2, skipped=skipped))
    assert len(read) == 48  # two batches are empty
    assert [error.file for error in skipped] == [str(files[index]) for index in (0, 1, 2, 3, 98)]


def test_without_any_image_that_opens_there_are_no_batches(tmp_path):
    files = files_in(tmp_path, 3, broken=range(3))
    with pytest.raises(ValueError, match="1 of 3 images"):
        list(batches(files, PREPROCESS, 1))
    skipped = []
    assert list(batches(files, PREPROCESS, 2, skipped=skipped)) == []
    assert len(skipped) == 3


def test_images_that_differ_in_size_are_named(tmp_path):
    files = files_in(tmp_path, 9)
    Image.new("RGB", (5, 2)).save(files[7])
    keep = dataclasses.replace(PREPROCESS, resize=None, crop=None)
    with pytest.raises(ValueError, match=r"007\.png is 2×5 after preprocessing, others are 2×2"):
        list(batches(files, keep, 4))


def broken_jpeg(path):
    write_image(path, size=(300, 200))
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path):
    """A PNG that says it had 4e9 pixels."""
    write_image(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (65535).to_bytes(4, "big") * 2
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name, make",
    [
        ("cut.jpg", broken_jpeg),
        ("bomb.png", bomb),
        ("text.jpg", lambda path: path.write_text("GIF?")),
        ("empty.png", lambda path: path.touch()),
        ("pipe.png", os.mkfifo),
        ("folder.png", os.mkdir),
        ("link.png", lambda path: path.symlink_to("nowhere")),
    ],
)
def test_what_is_no_image_is_named_with_the_cause(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UnreadableImage, match=name) as error:
        read_image(tmp_path / name, PREPROCESS)
    assert error.value.file == str(tmp_path / name) and error.value.reason


@pytest.mark.parametrize(
    "mode, suffix", [("L", "png"), ("CMYK", "jpg"), ("P", "gif"), ("1", "bmp")]
)
def test_modes_and_unicode_names(tmp_path, mode, suffix):
    file = tmp_path / f"猫 ünï\udce4.{suffix}"  # the last is a byte that is no UTF-8
    write_image(file, size=(50, 7), mode=mode)
    (batch,) = batches([file], PREPROCESS, 1)
    with Image.open(file) as image:
        np.testing.assert_array_equal(batch.images[0], PREPROCESS(image.convert("RGB")))


def test_exif_rotation_is_undone(tmp_path):
    image = Image.fromarray(scenes(1)[0, :5])
    exif = Image.Exif()
    exif[0x0112] = 8  # to be shown rotated by 90° counter-clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    (batch,) = batches([tmp_path / "turned.png"], PREPROCESS, 1)
    np.testing.assert_array_equal(batch.images[0], PREPROCESS(image.rotate(90, expand=True)))


def test_a_pass_that_is_left_stops_reading():
    read = []
    reader = read_ahead(lambda row: read.append(row) or row, range(100_000), ahead=4)
    assert next(reader) == 0
    reader.close()
    stopped = time.monotonic() + 10
    while any("grain" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < stopped
    assert len(read) < 100
