"""Folders of images give the right files, labels and names."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from evals.data import (
    image_files,
    image_folder,
    image_folder_split,
    read_image,
    read_templates,
    split_folders,
)
from evals.data.finding import image_suffixes
from evals.data.notices import say
from evals.data.templates import IMAGENET_TEMPLATES
from tests.evals.conftest import write_image

ONE = {"templates": ("a {}",)}


@pytest.fixture
def folder(tmp_path):
    """Five images in the classes "cat" and "guinea_pig", among what is no image of a class."""
    for index, name in enumerate(("ä b", "猫", "\udce4", "Z.JPG")):
        write_image(tmp_path / "guinea_pig" / f"{index}{name}.png", seed=index)
    write_image(tmp_path / "cat" / "deep" / "one.jpeg")
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    for hidden in (".ipynb_checkpoints", "__MACOSX", "cat/.thumbnails"):
        write_image(tmp_path / hidden / "hidden.png")
    write_image(tmp_path / "cat" / "._one.jpg")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_classes_are_the_folders_with_images(folder):
    data = image_folder(folder, **ONE)
    assert data.class_names == ["cat", "guinea pig"] and data.templates == ("a {}",)
    np.testing.assert_array_equal(data.labels, [0, 1, 1, 1, 1])
    assert list(data.images) == sorted(data.images) and data.images[0].name == "one.jpeg"


def test_a_limit_is_spread_over_all(folder):
    np.testing.assert_array_equal(image_folder(folder, **ONE, limit=2).labels, [0, 1])
    assert image_files(folder, limit=3) == image_files(folder)[::2]


def test_folders_below_symbolic_links_are_read(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "cat").symlink_to(folder / "cat")
    assert len(image_folder(other, **ONE).images) == 1


def test_linked_folders_are_read_once_and_loops_end(tmp_path, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_image(elsewhere / "deep" / "2.png")
    write_image(tmp_path / "cat" / "1.png")
    write_image(tmp_path / "dog" / "3.png")
    (tmp_path / "cat" / "linked").symlink_to(elsewhere)
    (tmp_path / "cat" / "again").symlink_to(elsewhere / "deep")
    (tmp_path / "cat" / "itself").symlink_to(tmp_path / "cat" / "itself")
    (elsewhere / "back").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tmp_path)
    data = image_folder(tmp_path, **ONE)
    assert sorted(file.name for file in data.images) == ["1.png", "2.png", "3.png"]
    np.testing.assert_array_equal(data.labels, [0, 0, 1])
    assert len(image_files(tmp_path)) == 3


def test_every_suffix_that_pillow_opens_is_read(tmp_path):
    modes = {"XBM": "1", "MSP": "1", "BLP": "P"}
    written = []
    for suffix, kind in Image.registered_extensions().items():
        if (
            suffix in image_suffixes() and kind in Image.SAVE and kind != "IM"
        ):  # whose writing warns
            file = tmp_path / "cat" / f"{len(written)}{suffix.upper()}"
            write_image(file, mode=modes.get(kind, "F" if suffix == ".pfm" else "RGB"))
            written.append(file)
    assert {".jfif", ".jpe", ".ppm", ".tga", ".apng", ".jp2"} <= {f.suffix.lower() for f in written}
    files = image_folder(tmp_path, **ONE).images
    assert list(files) == sorted(written)
    assert all(read_image(file, np.asarray).ndim for file in files)
    assert not {".pdf", ".mpeg", ".eps", ".h5", ".txt", ".npy"} & image_suffixes()


def test_what_is_left_out_is_counted_by_kind_and_folder(folder, capfd):
    say.cache_clear()
    for name in ("cat/a.heic", "cat/deep/b.HEIC", "guinea_pig/c", "cat/.d.png"):
        (folder / name).touch()
    write_image(folder / "loose.png")
    write_image(folder / "__background" / "1.png")
    (folder / "cat" / ".DS_Store").touch()
    assert image_folder(folder, **ONE).class_names == ["  background", "cat", "guinea pig"]
    (line,) = capfd.readouterr().err.splitlines()
    kinds = {kind.strip() for kind in line.split(f"left out below {folder}: ")[1].split(";")}
    assert kinds == {
        "2 .heic files (in cat, cat/deep)",
        "2 hidden folders (in ., cat)",
        "1 files without suffix (in guinea_pig)",
        "1 .txt files (in cat)",
        "1 hidden files (in cat)",
        "1 images in no class folder (in .)",
    }


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch, capfd):
    say.cache_clear()
    scandir = os.scandir

    def forbid(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbid)
    assert image_folder(folder, **ONE).class_names == ["guinea pig"]
    assert "deep cannot be read (Permission denied)" in capfd.readouterr().err


@pytest.mark.parametrize("names", [map(str, range(12)), (f"{k:03}" for k in range(12))])
def test_numbered_folders_come_in_the_order_of_numbers(tmp_path, names):
    folders = list(names)
    for k, name in enumerate(folders):
        write_image(tmp_path / "data" / name / f"{k}.png", size=(1, 1))
    (tmp_path / "names.txt").write_text("\n".join(f"class of {k}" for k in range(12)))
    data = image_folder(tmp_path / "data", **ONE, class_names=tmp_path / "names.txt")
    assert [f"class of {file.stem}" for file in data.images] == data.class_names
    assert list(data.folders) == folders and data.labels.tolist() == list(range(12))
    split = image_folder_split(tmp_path / "data", tmp_path / "data", **ONE)
    assert split.test.class_names == folders


def test_names_of_classes_from_a_file(folder):
    names, lines = folder / "names.json", folder / "names.txt"
    names.write_text(json.dumps({"guinea_pig": "cavy", "cat": "tabby", "dog": "not there"}))
    lines.write_text("tabby\n\ncavy\n")
    for file in (names, lines):
        assert image_folder(folder, **ONE, class_names=file).class_names == ["tabby", "cavy"]


@pytest.mark.parametrize("test", ["val", "validation", "test"])
def test_a_split_has_the_same_classes(tmp_path, test):
    for name in ("ant", "bee", "cow"):
        write_image(tmp_path / "train" / name / "1.png")
    write_image(tmp_path / test / "cow" / "2.png")
    split = image_folder_split(*split_folders(tmp_path), **ONE)
    np.testing.assert_array_equal(split.train.labels, [0, 1, 2])
    np.testing.assert_array_equal(split.test.labels, [2])
    assert split.train.class_names == split.test.class_names == ["ant", "bee", "cow"]
    with pytest.raises(ValueError, match=r"'ant', of which .* has none"):
        image_folder_split(tmp_path / test, tmp_path / "train", **ONE)
    assert split_folders(tmp_path / "train") is None


def test_folder_without_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="CLASS_NAME"):
        image_folder(tmp_path, **ONE)
    with pytest.raises(FileNotFoundError, match="holds no images"):
        image_files(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        image_files([tmp_path / "nowhere"])


def test_templates(tmp_path):
    assert read_templates(None) == ("a photo of a {}.",)
    assert read_templates("imagenet") == read_templates(("imagenet",)) == IMAGENET_TEMPLATES
    assert len(set(IMAGENET_TEMPLATES)) == 80
    assert all(template.count("{}") == 1 for template in IMAGENET_TEMPLATES)
    (tmp_path / "own.txt").write_text("one {}\n\ntwo {}\n")
    assert read_templates(str(tmp_path / "own.txt")) == ("one {}", "two {}")
    assert read_templates(("{} a", "{}")) == ("{} a", "{}") and read_templates("{}") == ("{}",)
    with pytest.raises(FileNotFoundError, match="'a cat' is no file"):
        read_templates(("a cat",))
    for wrong in ((), ("{}", "a photo of a cat")):
        with pytest.raises(ValueError, match="template"):
            read_templates(wrong)


def test_template_without_a_place_for_the_name_is_refused(folder):
    with pytest.raises(ValueError, match="a photo of a cat"):
        image_folder(folder, templates=("a photo of a cat",))
