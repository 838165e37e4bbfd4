"""Folders of images give the right files, labels and names."""

import json
import os

import numpy as np
import pytest

from evals.data import image_files, image_folder, image_folder_split, read_templates, split_folders
from evals.data.folders import read_class_names
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


def test_names_of_classes_from_a_file(folder):
    names, lines = folder / "names.json", folder / "names.txt"
    names.write_text(json.dumps({"guinea_pig": "cavy", "cat": "tabby", "dog": "not there"}))
    lines.write_text("tabby\n\ncavy\n")
    for file in (names, lines):
        assert image_folder(folder, **ONE, class_names=file).class_names == ["tabby", "cavy"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.txt", "one", "1 classes, but there are 2 folders"),
        ("a.json", '{"cat": "tabby"}', "guinea_pig"),
        ("a.json", "[" * 100_000, "json"),
        ("a.json", "[1]", "json"),
        ("a.json", "", "json"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / name, ["cat", "guinea_pig"])


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
