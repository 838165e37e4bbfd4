"""The folders of ADE20K and Pascal VOC, as published, in small; label maps are read as indices."""

import numpy as np
import pytest
from PIL import Image

from evals.data import (
    IGNORED,
    SegmentedImages,
    UnreadableImage,
    ade20k,
    pascal_voc,
    read_label_map,
    segmented_digit_scenes,
)
from tests.evals.conftest import write_image


def write_labels(path, labels, *, palette=False):
    """A PNG of indices, grey or with a palette of other colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(labels, np.uint8))
    if palette:
        image.putpalette(np.random.default_rng(0).permutation(768) % 256)
    image.save(path)


def write_ade20k(folder):
    for part, count in (("training", 3), ("validation", 1)):
        for index in range(count):
            name = f"ADE_{part[:5]}_{index:08}"
            write_image(folder / "images" / part / f"{name}.jpg", size=(3, 2))
            labels = folder / "annotations" / part / f"{name}.png"
            write_labels(labels, [[0, 1, 150], [2, 255, index]])
    return folder


def write_voc(folder):
    lists = folder / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for part, stems in (("train", ["2007_1", "2007_2"]), ("val", ["2008_é"])):
        (lists / f"{part}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")
        for stem in stems:
            write_image(folder / "JPEGImages" / f"{stem}.jpg", size=(3, 2))
            labels = folder / "SegmentationClass" / f"{stem}.png"
            write_labels(labels, [[0, 1, 20], [255, 15, 0]], palette=True)
    write_image(folder / "JPEGImages" / "unlisted.jpg")
    return folder


def test_ade20k(tmp_path):
    split = ade20k(write_ade20k(tmp_path))
    assert len(split.train.images) == 3 and len(split.test.images) == 1
    assert split.test.class_names[::149] == ["class 1", "class 150"]
    expected = [[IGNORED, 0, 149], [1, IGNORED, IGNORED]]
    np.testing.assert_array_equal(read_label_map(split.test, 0), expected)
    assert read_label_map(split.train, 2)[1, 2] == 1
    assert [image.name for image in ade20k(tmp_path, limit=2).train.images] == [
        "ADE_train_00000000.jpg",
        "ADE_train_00000002.jpg",
    ]


def test_names_of_ade20k(tmp_path):
    table = write_ade20k(tmp_path) / "objectInfo150.txt"
    lines = [f"{k}\t0.1\t{k}\t{k}\tname {k}, synonym\t" for k in range(1, 151)]
    table.write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *lines]))
    assert ade20k(tmp_path).test.class_names == [f"name {k}" for k in range(1, 151)]
    table.write_text("Idx\tName\n1\twall\n")
    with pytest.raises(ValueError, match="names 1 classes, not 150"):
        ade20k(tmp_path)


def test_pascal_voc(tmp_path):
    split = pascal_voc(write_voc(tmp_path))
    assert [path.stem for path in split.train.images] == ["2007_1", "2007_2"]
    assert [path.stem for path in split.test.images] == ["2008_é"]
    assert len(split.test.class_names) == 21 and split.test.class_names[15] == "person"
    expected = [[0, 1, 20], [IGNORED, 15, 0]]
    np.testing.assert_array_equal(read_label_map(split.test, 0), expected)


@pytest.mark.parametrize("missing", ["JPEGImages/2007_2.jpg", "SegmentationClass/2007_1.png"])
def test_a_missing_file_is_named(tmp_path, missing):
    (write_voc(tmp_path) / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        pascal_voc(tmp_path)


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path):
    (write_voc(tmp_path) / "ImageSets" / "Segmentation" / "val.txt").write_text("../../secret")
    with pytest.raises(ValueError, match="secret"):
        pascal_voc(tmp_path)


def test_digit_scenes():
    split = segmented_digit_scenes(5, 4)
    assert len(split.train.images) == 5 and len(split.test.class_names) == 11
    for row in range(4):
        labels = read_label_map(split.test, row)
        np.testing.assert_array_equal(labels, split.test.label_maps[row])
        assert {0} < set(np.unique(labels).tolist()) <= set(range(11))


def segmented(folder, labels, *, size=(3, 2)):
    """One image and its label map, of two classes."""
    write_image(folder / "image.png", size=size)
    file = folder / "labels.png"
    if isinstance(labels, Image.Image):
        labels.save(file)
    else:
        write_labels(file, labels)
    return SegmentedImages([folder / "image.png"], [file], ["one", "two"])


def test_images_without_size_of_their_label_map_are_refused(tmp_path):
    data = segmented(tmp_path, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"labels\.png is 3 × 2 pixels, but its image 2 × 3"):
        read_label_map(data, 0)


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_size_is_that_of_the_image_as_shown(tmp_path, kind):
    data, exif = segmented(tmp_path, np.zeros((3, 2))), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3, 2)).save(data.images[0], kind, exif=exif)
    assert read_label_map(data, 0).shape == (3, 2)


def test_labels_that_are_no_class_are_refused(tmp_path):
    data = segmented(tmp_path, [[0, 1, 255], [7, 1, 0]])
    with pytest.raises(ValueError, match=r"labels\.png holds the label 7; classes are 0 to 1"):
        read_label_map(data, 0)


@pytest.mark.parametrize("mode", ["RGB", "1", "I;16", "RGBA"])
def test_colours_are_no_labels(tmp_path, mode):
    data = segmented(tmp_path, Image.new(mode, (3, 2)))
    with pytest.raises(ValueError, match="does not hold an index of 8 bits"):
        read_label_map(data, 0)


def test_a_label_map_that_does_not_open_is_named(tmp_path):
    data = segmented(tmp_path, np.zeros((2, 3)))
    data.label_maps[0].write_bytes(b"\x89PNG nothing more")
    with pytest.raises(UnreadableImage, match=r"labels\.png"):
        read_label_map(data, 0)
