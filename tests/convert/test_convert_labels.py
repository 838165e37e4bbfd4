"""The names of a classifier's classes, from every file that may say them."""

import json

import pytest

from convert.__main__ import main
from convert.errors import ConversionError
from convert.labels import read_labels
from convert.loading import convert_checkpoint
from tests import zoo

NAMES = ["zebra", "chat noir", "Ökapi"]  # as many classes as the zoo's classifiers have
AS_ID2LABEL = {str(i): name for i, name in enumerate(NAMES)}


def change_config(folder, **fields):
    values = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "case, fields",
    [
        ("vit_hf", dict(id2label=AS_ID2LABEL)),
        ("vit_hf", dict(id2label=dict(reversed(AS_ID2LABEL.items())))),
        ("vit_timm", dict(label_names=NAMES, label_descriptions={"zebra": "striped"})),
        ("dinov2_registers_hf", dict(id2label=AS_ID2LABEL)),
    ],
)
def test_labels_survive_conversion(case, fields, tmp_path, capsys):
    source = change_config(zoo.write(case, tmp_path / "source"), **fields)
    assert main([str(source), str(tmp_path / "out")]) == 0
    assert "labels      'zebra', 'chat noir', 'Ökapi'\n" in capsys.readouterr().out
    assert read_labels(source) == read_labels(tmp_path / "out") == tuple(NAMES)
    assert json.loads((tmp_path / "out" / "labels.json").read_text(encoding="utf-8")) == NAMES


@pytest.mark.parametrize(
    "fields",
    [
        dict(id2label={str(i): f"LABEL_{i}" for i in range(3)}),  # which transformers makes up
        dict(id2label={"0": "a", "2": "b", "3": "c"}),
        dict(id2label={"0": "a", "1": None, "2": "c"}),
        dict(id2label={}),
        dict(id2label=None),
        dict(id2label=[]),
        dict(label_names=[]),
        dict(label_names=["a", 1, "c"]),
        dict(label_names={"a": 0}),
    ],
)
def test_what_names_no_classes_gives_no_labels(fields, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_labels(tmp_path) is None


def test_labels_of_another_classifier_are_not_written(tmp_path):
    source = zoo.write("vit_hf", tmp_path / "source")
    change_config(source, id2label=AS_ID2LABEL | {"3": "gnu"})
    assert convert_checkpoint(source)[1].labels is None


def test_a_list_beside_the_weights_comes_first(tmp_path):
    source = change_config(zoo.write("vit_hf", tmp_path / "source"), id2label=AS_ID2LABEL)
    (source / "labels.json").write_text('["a", "b", "c"]')
    assert convert_checkpoint(source)[1].labels == ("a", "b", "c")


@pytest.mark.parametrize("content", ['{"a": 1}', "[]", '["a", 2]', "[", "7"])
def test_a_damaged_list_is_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ConversionError, match=r"labels\.json"):
        read_labels(tmp_path)


def test_nothing_says(tmp_path):
    assert read_labels(tmp_path) is None
