"""What lies at a path tells the format, and the format which data there are."""

import json

import ml_collections
import numpy as np
import pytest
from PIL import Image

from evals.data import LabelledImages, Split, image_files
from evals.data.datasets import FORMATS, KINDS, OF_USERS, format_of, open_data
from evals.jobs.settings import check_data_settings
from tests.evals.conftest import write_image
from tests.evals.data.test_captions import coco, written
from tests.evals.data.test_label_maps import write_ade20k, write_voc


def settings(data, **fields):
    return ml_collections.ConfigDict({"data": str(data), "num_fidelity_images": 3} | fields)


def write_classes(folder, *, parts=("",)):
    for part in parts:
        for name in ("ant", "bee", "bee/deep"):
            write_image(folder / part / name / "1.png", size=(4, 4))
    return folder


def write_split(folder):
    return write_classes(folder, parts=("train", "val"))


def write_coco(folder):
    return written(folder, coco([(0, "a"), (1, "b"), (1, "c")]), ["ä0.jpg", "ä1.jpg"])


def write_table(folder):
    (folder / "state.json").write_text("{}")
    return folder


SCENES = {"labelled", "captioned", "labelled split", "segmented split"}
MADE = [  # what writes it, a word of the format's name, the kinds of data in it
    (lambda folder: "digit scenes", "scenes", SCENES),
    (write_ade20k, "ADE20K", {"segmented split"}),
    (write_voc, "VOC", {"segmented split"}),
    (write_classes, "per class", {"labelled"}),
    (write_split, "per class", {"labelled", "labelled split"}),
    (write_coco, "json", {"captioned"}),
    (write_table, "Hugging Face", None),  # tests/evals/data/test_huggingface.py
]


@pytest.mark.parametrize("write, word, kinds", MADE)
def test_format_is_recognised_and_opens_its_kinds(tmp_path, write, word, kinds):
    config = settings(write(tmp_path), num_labelled_scenes=4, num_captioned_scenes=4)
    assert word in format_of(config).name
    if kinds is None:
        return
    found = {kind: open_data(kind, config) for kind in KINDS[:4]}
    assert {kind for kind, data in found.items() if data is not None} == kinds
    if write is not write_coco:  # whose files are empty
        assert 1 <= len(open_data("images", config)) <= 3
    for kind in kinds:
        assert isinstance(found[kind], Split) == ("split" in kind)


def test_every_format_is_tested(tmp_path):
    assert {format.name for format in FORMATS} == {
        next(format.name for format in FORMATS if word in format.name) for _, word, _ in MADE
    }
    assert all(set(format.readers) <= set(KINDS) for format in FORMATS)
    assert all(set(format.settings) <= set(OF_USERS) for format in FORMATS)


def test_embedded_training_data_are_other_scenes():
    config = settings("digit scenes", num_labelled_scenes=5, num_train_scenes=7)
    split = open_data("labelled split", config)
    assert len(split.train.images) == 7 and len(split.test.images) == 5
    labelled = open_data("labelled", config)
    np.testing.assert_array_equal(split.test.images, labelled.images)
    assert (np.asarray(split.train.images)[:5] != np.asarray(labelled.images)).any()


def test_training_data_elsewhere(tmp_path):
    write_classes(tmp_path / "here")
    write_classes(tmp_path / "there")
    write_image(tmp_path / "there" / "aphid" / "1.png")
    config = settings(tmp_path / "here", train_data=str(tmp_path / "there"))
    split = open_data("labelled split", config)
    assert split.train.class_names == open_data("labelled", config).class_names
    assert split.test.labels.tolist() == [0, 2, 2]


def test_settings_reach_the_reader(tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"ant": "Ant", "bee": "Bee"}))
    data = open_data(
        "labelled",
        settings(
            write_classes(tmp_path / "data"),
            class_names=str(tmp_path / "names.json"),
            templates=("imagenet",),
            num_images=2,
        ),
    )
    assert isinstance(data, LabelledImages) and len(data.images) == 2
    assert data.class_names == ["Ant", "Bee"] and len(data.templates) == 80


def test_images_are_those_that_open(tmp_path):
    for index in range(200):
        Image.new("L", (1, 1)).save(tmp_path / f"{index:03}.png")
    files = image_files(tmp_path)
    files[0].write_bytes(b"")
    config = settings(tmp_path, num_fidelity_images=3)
    assert open_data("images", config) == [files[99], files[199]]
    for file in files[99], files[199]:
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="3 of 200 images do not open"):
        open_data("images", config)


@pytest.mark.parametrize("write, word, kinds", MADE)
def test_settings_that_the_data_make_no_use_of_are_refused(tmp_path, write, word, kinds):
    data = write(tmp_path)
    used = format_of(settings(data)).settings
    for name in OF_USERS:
        config = settings(data, **{name: 1})
        if name in used:
            check_data_settings(config)
        else:
            with pytest.raises(ValueError, match=f"{name} was given, but"):
                check_data_settings(config)


@pytest.mark.parametrize("name", ["num_train_scenes", "num_segmented_scenes", "num_images"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        check_data_settings(settings("digit scenes", **{name: 0}))


def test_missing_data_are_refused_with_what_is_understood(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*ADE20K.*VOC.*per class.*COCO"):
        open_data("labelled", settings(tmp_path / "nowhere"))
