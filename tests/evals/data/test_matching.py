"""Each class of the data is the classifier's output of the same name or number, or is refused."""

import numpy as np
import pytest

from evals.data import LabelledImages
from evals.data.class_names import in_order
from evals.data.matching import by_outputs
from evals.data.notices import say

ZOO = ("zebra", "cat", "Dog", "guinea pig", "tench, Tinca tinca", "crane", "crane", "C", "C++")
NUMBERS = tuple(map(str, range(12)))


def folders_of(*folders, names=None):
    """An image of each of these folders, as `image_folder` gives them."""
    folders = in_order(folders)
    names = names or [name.replace("_", " ") for name in folders]
    return LabelledImages([*folders], np.arange(len(folders)), names, ("{}",), folders)


def numbered(*names):
    """An image of each class of data that number them."""
    return LabelledImages([*names], np.arange(len(names)), names, ("{}",))


def outputs(data, num_outputs=None, labels=None):
    """The output of each image, by what the image is called."""
    found = by_outputs(data, num_outputs or len(labels), labels)
    assert len(found.class_names) == (num_outputs or len(labels)) and found.folders is None
    for image, label in zip(found.images, found.labels):
        assert found.class_names[label] == data.class_names[data.images.index(image)]
    return dict(zip(found.images, found.labels.tolist()))


@pytest.mark.parametrize("labels", [None, [f"label {k}" for k in range(12)], NUMBERS])
def test_numbers_are_of_outputs(labels):
    assert outputs(folders_of(*NUMBERS), 12, labels) == {name: int(name) for name in NUMBERS}
    assert outputs(folders_of("010", "003"), 12, labels) == {"010": 10, "003": 3}


def test_labels_that_match_decide_in_any_order_and_for_some_classes():
    assert outputs(folders_of("cat", "zebra"), labels=ZOO) == {"zebra": 0, "cat": 1}
    reverse = NUMBERS[::-1]
    assert outputs(folders_of(*NUMBERS), labels=reverse) == dict(zip(reverse, range(12)))
    assert outputs(numbered("dog", "cat"), labels=ZOO) == {"dog": 2, "cat": 1}


@pytest.mark.parametrize(
    "name, output",
    [
        ("cat", 1),
        ("DOG", 2),
        ("Guinea_Pig", 3),
        ("guinea-pig", 3),
        ("tench", 4),
        ("Tinca_tinca", 4),
        ("tench, Tinca tinca", 4),
        ("C", 7),
        ("C++", 8),
    ],
)
def test_spellings_of_a_label(name, output):
    assert outputs(folders_of(name), labels=ZOO) == {name: output}


def test_wordnet_ids_are_labels_or_in_front_of_them():
    ids = ("n02000000", "n01000000", "n03000000")
    described = (f"{ids[0]} some fish, fishy", f"{ids[1]} bird", ids[2])
    for labels in (ids, described):
        assert outputs(folders_of(*ids), labels=labels) == dict(zip(ids, range(3)))
    assert outputs(folders_of("bird", "fishy"), labels=described) == {"fishy": 0, "bird": 1}


def test_a_file_of_names_matches_where_folders_do_not():
    data = folders_of("1", "2", names=["cat", "zebra"])
    assert outputs(data, labels=ZOO) == {"1": 1, "2": 0}
    assert outputs(folders_of("a", "b", names=["zebra", "cat"]), labels=ZOO) == {"a": 0, "b": 1}
    assert outputs(folders_of("1", "2", names=["ape", "cat"]), labels=ZOO) == {"1": 1, "2": 2}


@pytest.mark.parametrize("labels", [None, ("tench", "goldfish")])
def test_imagenets_folders_come_in_its_order_and_it_is_said(labels, capfd):
    say.cache_clear()
    data = folders_of("n01443537", "n01440764")
    assert outputs(data, 2, labels) == {"n01440764": 0, "n01443537": 1}
    assert "2 folders are taken for" in capfd.readouterr().err


def test_data_that_number_their_classes_are_of_that_numbering():
    assert outputs(numbered("b", "a"), 2) == {"b": 0, "a": 1}


def test_outputs_without_images_keep_a_name():
    data = folders_of("guinea_pig", "1")
    assert by_outputs(folders_of("cat"), len(ZOO), ZOO).class_names == list(ZOO)
    assert by_outputs(folders_of("1"), 3).class_names == ["class 0", "1", "class 2"]
    with pytest.raises(ValueError, match="'1'"):
        by_outputs(data, len(ZOO), ZOO)


def test_labels_of_another_head_are_not_used(capfd):
    say.cache_clear()
    assert outputs(folders_of("1", "0"), 3, ("1", "0")) == {"0": 0, "1": 1}
    assert "names 2 classes, but has 3" in capfd.readouterr().err


@pytest.mark.parametrize(
    "data, num_outputs, labels, message",
    [
        (folders_of("ape", "cat"), 9, ZOO, r"1 of 2 .*: 'ape'; labels .* 'zebra', 'Dog', .*json"),
        (folders_of("cat", "Cat"), 9, ZOO, "2 of 2 .*: 'Cat', 'cat'; labels"),
        (folders_of("crane", "cat"), 9, ZOO, "1 of 2 .*: 'crane'"),
        (folders_of("1", "12"), 12, None, "'12' is no number .* 12, 0 to 11"),
        (folders_of("1", "01"), 12, None, "of one number"),
        (folders_of("1", "b"), 2, None, r"does not say .*'1', 'b'.* 0 to 1.*labels\.json"),
        (folders_of("a", "b"), 2, None, "does not say"),
        (folders_of("n01440764"), 2, ("tench", "goldfish"), "1 of 1"),
        (folders_of("²"), 3, None, "does not say"),
        (numbered("a", "b"), 3, None, "tells 3 classes, but the data have 2"),
        (numbered("a", "cat"), 9, ZOO, r"1 of 2 .*: 'a'; .*labels\.json"),
    ],
)
def test_what_does_not_match_is_refused_with_the_differences(data, num_outputs, labels, message):
    with pytest.raises(ValueError, match=message):
        by_outputs(data, num_outputs, labels)
