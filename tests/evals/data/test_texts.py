"""Every text that a user gives is UTF-8, or refused by its name, whatever is read from it."""

import json

import pytest

from evals.data import ade20k, captioned_images, pascal_voc, read_templates
from evals.data.class_names import read_class_names
from evals.data.texts import read_json, read_lines, read_text
from tests.evals.data.test_captions import coco, written
from tests.evals.data.test_label_maps import write_ade20k, write_voc

TEXT = "café {}\r\n\r\nzwei {}\x85 b\n"  # of which the next-line character ends no line


def names_in(file):
    return read_class_names(file, ["a", "b"])


def test_byte_order_marks_are_dropped(tmp_path):
    file = tmp_path / "a.txt"
    for content in (TEXT.encode(), TEXT.encode("utf-8-sig"), TEXT.encode("utf-8-sig") * 2):
        file.write_bytes(content)
        assert set(read_lines(file)) == {"café {}", "zwei {}\x85 b"}
    assert read_templates(str(file))[2] == "café {}"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("read", [read_text, read_lines, read_json, names_in, read_templates])
def test_other_encodings_are_refused_by_name(tmp_path, read, encoding):
    (tmp_path / "a.txt").write_bytes(TEXT.replace("\x85", "").encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt is not text in UTF-8 .*iconv"):
        read(str(tmp_path / "a.txt"))


def test_every_reader_of_data_refuses_them(tmp_path):
    names = {"cat": "café", "dog": "chien"}
    (tmp_path / "a.json").write_bytes(json.dumps(names, ensure_ascii=False).encode("cp1252"))
    captions = json.dumps(coco([(0, "café")]), ensure_ascii=False)
    written(tmp_path, "").write_bytes(captions.encode("cp1252"))
    (write_voc(tmp_path) / "ImageSets/Segmentation/val.txt").write_bytes(b"2008_\xe9\n")
    (write_ade20k(tmp_path) / "objectInfo150.txt").write_bytes(b"Name\ncaf\xe9\n" * 75)
    readers = {
        "a.json": lambda file: read_class_names(file, ["cat", "dog"]),
        "captions.json": captioned_images,
        "val.txt": lambda _: pascal_voc(tmp_path),
        "objectInfo150.txt": lambda _: ade20k(tmp_path),
    }
    for name, read in readers.items():
        with pytest.raises(ValueError, match=f"{name} is not text in UTF-8"):
            read(tmp_path / name)


def test_what_is_no_json_is_refused_by_name(tmp_path):
    for content in ("", "{", "[" * 100_000, "9" * 5000):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match=r"a\.json is no json"):
            read_json(tmp_path / "a.json")
