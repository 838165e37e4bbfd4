"""Tables that Hugging Face `datasets` saves to disk; most need that library."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from evals.data import batches, read_image
from evals.data.huggingface import (
    StoredImage,
    huggingface_captioned,
    huggingface_labelled,
    huggingface_split,
    is_huggingface,
)
from evals.data.notices import say

pytestmark = pytest.mark.reference  # for which CI installs the library
ONE = {"templates": ("{}",)}


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (value, 0, 0)).save(file, "png")
    return {"bytes": file.getvalue(), "path": None}


def saved(folder, columns, **features):
    """A table, or several, by split, in that folder; the column `image` is images."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image()} | features)
    if isinstance(next(iter(columns.values())), dict):
        tables = {
            name: datasets.Dataset.from_dict(part, features=features)
            for name, part in columns.items()
        }
        datasets.DatasetDict(tables).save_to_disk(folder)
    else:
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return folder


def class_label(*names):
    return pytest.importorskip("datasets").ClassLabel(names=list(names))


def texts(several):
    datasets = pytest.importorskip("datasets")
    text = datasets.Value("string")
    return datasets.Sequence(text) if several else text


def pixels(data):
    return [int(read_image(image, np.asarray)[0, 0, 0]) for image in data.images]


def test_labelled_splits(tmp_path, capfd):
    say.cache_clear()
    part = lambda *labels: {"image": [png(10 * i) for i in range(len(labels))], "label": labels}
    columns = {"train": part(0, 1, 1), "test": part(-1, -1), "validation": part(1, -1, 0)}
    folder = saved(tmp_path / "table", columns, label=class_label("guinea_pig", "cat"))
    assert is_huggingface(folder) and not is_huggingface(tmp_path)
    split = huggingface_split(folder, **ONE)
    assert split.test.class_names == ["guinea pig", "cat"]
    np.testing.assert_array_equal(split.train.labels, [0, 1, 1])
    np.testing.assert_array_equal(split.test.labels, [1, 0])
    assert pixels(split.test) == [0, 20]
    assert "1 of 3 images" in capfd.readouterr().err
    assert huggingface_labelled(folder, **ONE, split="train", limit=2).labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match="no labels"):
        huggingface_labelled(folder, **ONE, split="test")
    with pytest.raises(ValueError, match="no split 'dev'; choose one of test, train, validation"):
        huggingface_labelled(folder, **ONE, split="dev")
    assert huggingface_captioned(folder) is None


@pytest.mark.parametrize("several", [True, False])
def test_captions(tmp_path, several):
    captions = [["a", " ", "b"], [], ["c"]] if several else ["a", None, "b"]
    columns = {"image": [png(i) for i in range(3)], "caption": captions, "file": ["x", "y", "z"]}
    folder = saved(tmp_path / "t", columns, caption=texts(several), file=texts(False))
    data = huggingface_captioned(folder)
    assert data.captions == (("a", "b", "c") if several else ("a", "b"))
    assert data.image_of_caption.tolist() == ([0, 0, 1] if several else [0, 1])
    assert pixels(data) == [0, 2]
    assert huggingface_labelled(folder, **ONE) is huggingface_split(folder, **ONE) is None


def test_images_that_do_not_open_are_named(tmp_path):
    columns = {"image": [png(1), {"bytes": b"\x89PNG", "path": None}, None], "label": [0, 0, 0]}
    data = huggingface_labelled(saved(tmp_path / "t", columns, label=class_label("a")), **ONE)
    skipped = []
    (batch,) = batches(data.images, np.asarray, 3, skipped=skipped)
    assert batch.rows.tolist() == [0, -1, -1]
    assert [error.file[-8:] for error in skipped] == ["t, row 1", "t, row 2"]


@pytest.mark.parametrize("stored", [None, {"bytes": None, "path": "https://example.com/a.png"}])
def test_what_is_not_in_the_table_is_not_fetched(stored):
    with pytest.raises(ValueError, match="is no file"):
        StoredImage([{"image": stored}], "image", 0).open_image()


def test_several_columns_of_labels_need_a_choice(tmp_path):
    columns = {"image": [png(0)], "fine": [0], "coarse": [0]}
    folder = saved(tmp_path / "t", columns, fine=class_label("a"), coarse=class_label("b"))
    with pytest.raises(ValueError, match="columns fine, coarse; rename"):
        huggingface_labelled(folder, **ONE)


def test_a_damaged_folder_is_refused(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="not what datasets saves"):
        huggingface_labelled(tmp_path, **ONE)


def test_without_the_library_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install -r requirements-datasets\.txt"):
        huggingface_labelled(tmp_path, **ONE)
