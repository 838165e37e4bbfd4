"""Captions of COCO and Karpathy json files, with any number of them per image."""

import json

import numpy as np
import pytest

from evals.data import captioned_images
from evals.data.notices import say


@pytest.fixture(autouse=True)
def nothing_said():
    say.cache_clear()


def written(folder, content, images=()):
    """The json, beside the images (which nobody opens)."""
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    file = folder / "captions.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def coco(captions):
    """A json of images 10, 11, … `ä0.jpg`, … and pairs of image and caption."""
    count = 1 + max(image for image, _ in captions)
    return {
        "images": [{"id": 10 + i, "file_name": f"ä{i}.jpg"} for i in reversed(range(count))],
        "annotations": [{"image_id": 10 + i, "caption": text} for i, text in captions],
    }


def karpathy(*entries):
    """A json of pairs of split and captions, for images `0.jpg`, …"""
    return {
        "dataset": "flickr30k",
        "images": [
            {
                "filename": f"{index}.jpg",
                "split": split,
                "sentences": [{"raw": text, "tokens": text.split()} for text in captions],
            }
            for index, (split, captions) in enumerate(entries)
        ],
    }


def names(data):
    return [path.name for path in data.images]


def test_coco_with_any_number_of_captions_per_image(tmp_path, capfd):
    content = coco([(0, "a"), (2, "b"), (0, "c"), (1, " "), (1, None), (2, "d"), (2, "e")])
    images = [f"ä{i}.jpg" for i in range(3)]
    data = captioned_images(written(tmp_path, content, images))
    assert names(data) == ["ä0.jpg", "ä2.jpg"]
    assert data.captions == ("a", "c", "b", "d", "e")
    np.testing.assert_array_equal(data.image_of_caption, [0, 0, 1, 1, 1])
    assert "1 of 3 images" in capfd.readouterr().err
    assert names(captioned_images(tmp_path / "captions.json", limit=1)) == ["ä0.jpg"]


def test_karpathy_takes_one_split(tmp_path, capfd):
    content = karpathy(
        ("train", ["a"]), ("test", ["b", "c"]), ("val", ["d"]), ("test", []), ("test", ["e"] * 6)
    )
    file = written(tmp_path, content, [f"{i}.jpg" for i in range(5)])
    data = captioned_images(file)
    assert names(data) == ["1.jpg", "4.jpg"]
    np.testing.assert_array_equal(data.image_of_caption, [0, 0] + [1] * 6)
    assert data.captions == ("b", "c", *["e"] * 6) and "1 of 3" in capfd.readouterr().err
    assert names(captioned_images(file, split="val")) == ["2.jpg"]
    with pytest.raises(ValueError, match=r"no split 'dev', only test, train, val"):
        captioned_images(file, split="dev")


def test_karpathy_of_coco_has_folders(tmp_path):
    content = karpathy(("test", ["a"]))
    content["images"][0]["filepath"] = "val2014"
    (image,) = captioned_images(written(tmp_path, content, ["val2014/0.jpg"])).images
    assert image == tmp_path / "val2014" / "0.jpg"


def test_images_elsewhere(tmp_path):
    file = written(tmp_path, coco([(0, "a"), (1, "b"), (2, "c")]), ["images/ä0.jpg"])
    with pytest.raises(FileNotFoundError, match=r"ä0.*nor do 2 other.*data_images"):
        captioned_images(file)
    with pytest.raises(FileNotFoundError, match="ä1"):
        captioned_images(file, images=tmp_path / "images")
    assert len(captioned_images(file, images=tmp_path / "images", limit=1).images) == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "3",
        "[]",
        "{}",
        "[" * 100_000,
        '{"images": [], "annotations": []}',
        '{"images": 3}',
        '{"images": [{"id": 1, "file_name": "../secret"}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "/etc/passwd"}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": 5}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 1, "caption": "a"}]}',
        coco([(0, ["a"])]),
        coco([(0, "")]),
        karpathy(("test", [])),
        {"images": [{"filename": "../a", "split": "test", "sentences": [{"raw": "a"}]}]},
        {"images": [{"filename": "a", "filepath": "/", "split": "test", "sentences": []}]},
        {"images": [{"filename": "a", "split": ["test"], "sentences": []}]},
        {"images": [{"filename": "a", "split": "test"}]},
    ],
)
def test_what_is_no_captions_json_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="captions"):
        captioned_images(written(tmp_path, content))
