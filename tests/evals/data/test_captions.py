"""Captions of COCO and Karpathy json files, with any number of them per image."""

import json
import unicodedata

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


def test_a_list_has_captions_of_images_together_or_line_by_line(tmp_path, capfd):
    content = [
        {"image": "val2014/b.jpg", "caption": ["one", "two"]},
        {"image": "a.jpg", "caption": "three", "image_id": "coco_3"},
        {"image": "c.jpg", "caption": []},
        {"image": "val2014/b.jpg", "caption": "four", "image_id": "coco_1"},
    ]
    data = captioned_images(written(tmp_path, content, ["val2014/b.jpg", "a.jpg"]))
    assert names(data) == ["b.jpg", "a.jpg"]
    assert data.captions == ("one", "two", "four", "three") and "1 of 3" in capfd.readouterr().err
    np.testing.assert_array_equal(data.image_of_caption, [0, 0, 0, 1])
    with pytest.raises(ValueError, match=r"has no splits, got .*'val'"):
        captioned_images(tmp_path / "captions.json", split="val")


@pytest.mark.parametrize("as_written", [str, float, "{:012}".format])
@pytest.mark.parametrize("where", ["images", "annotations"])
def test_ids_of_other_types_match(tmp_path, as_written, where):
    content = coco([(0, "a"), (1, "b"), (1, "c")])
    for entry in content[where][1:]:  # and the first as it was: they may be mixed
        field = "id" if where == "images" else "image_id"
        entry[field] = as_written(entry[field])
    data = captioned_images(written(tmp_path, content, ["ä0.jpg", "ä1.jpg"]))
    assert names(data) == ["ä0.jpg", "ä1.jpg"] and data.captions == ("a", "b", "c")


@pytest.mark.parametrize("on_disk, in_json", [("NFD", "NFC"), ("NFC", "NFD")])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_names_match_however_they_are_composed(tmp_path, on_disk, in_json, separator):
    stored = unicodedata.normalize(on_disk, "é/ü/ö.jpg")
    name = unicodedata.normalize(in_json, "é/ü/ö.jpg").replace("/", separator)
    content = [{"image": name, "caption": "a"}]
    assert captioned_images(written(tmp_path, content, [stored])).images == [tmp_path / stored]


def test_a_name_as_it_is_comes_first(tmp_path):
    stored = [unicodedata.normalize(form, "ö.jpg") for form in ("NFC", "NFD")] + ["a\\b.jpg"]
    content = [{"image": name, "caption": "a"} for name in stored]
    assert names(captioned_images(written(tmp_path, content, [*stored, "a/b.jpg"]))) == stored


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
        '{"images": [{"id": 1, "file_name": "a\\\\..\\\\b"}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": "C:\\\\a.jpg"}], "annotations": []}',
        '{"images": [{"id": 1, "file_name": ""}], "annotations": []}',
        '[{"image": "../a.jpg", "caption": "a"}]',
        "[3]",
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


def image(**fields):
    return {"id": 1, "file_name": "a.jpg"} | fields


@pytest.mark.parametrize(
    "content, message",
    [
        ({"info": {}, "images": [image()]}, "neither annotations .* nor sentences"),
        ({"images": [image()], "annotations": [{"image_id": 1}]}, "no 'caption' in .*image_id"),
        ({"images": [{"id": 1}], "annotations": []}, "no 'file_name' in .*'id': 1"),
        ({"images": [image(id=None)], "annotations": []}, "id must be a number or a text.* None"),
        ({"images": [image(), image(file_name="b")], "annotations": []}, "two images .* id 1"),
        ({"images": [], "annotations": [{"image_id": 7, "caption": "a"}]}, "of image 7, which"),
        ({"images": [], "annotations": None}, "annotations must be a list of objects"),
        ([{"image": "a.jpg"}], "no 'caption' in .*a.jpg"),
        ([{"image": "a.jpg", "caption": [3]}], "3 is no caption"),
        ([{"image": "a.jpg", "caption": "a \ud83d"}], "is no caption"),
        ({"a.jpg": ["one"]}, "expected COCO's form"),
    ],
)
def test_what_is_missing_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=f"captions.json is no captions json.*{message}") as error:
        captioned_images(written(tmp_path, content))
    assert "Error(" not in str(error.value)
