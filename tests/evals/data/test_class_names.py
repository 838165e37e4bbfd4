"""Names of classes are those that a file gives to the folders, or the file is refused."""

import json

import pytest

from evals.data.class_names import in_order, names_of, read_class_names


@pytest.mark.parametrize(
    "folders, expected",
    [
        (["10", "9", "2"], ["2", "9", "10"]),
        (["010", "9", "002"], ["002", "9", "010"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["n02", "n01"], ["n01", "n02"]),
        ([], []),
    ],
)
def test_order_is_of_numbers_or_else_of_letters(folders, expected):
    assert in_order(folders) == expected


def test_folders_whose_names_are_not_utf8_need_others():
    assert names_of(["a_b", "ä"]) == ["a b", "ä"]
    with pytest.raises(ValueError, match=r"'caf\\udce9' is not UTF-8"):
        names_of(["caf\udce9"])


def test_the_first_of_synonyms_is_the_name(tmp_path):
    file = tmp_path / "names.json"
    names = {"a": [" tench ", "Tinca tinca"], "b": "güneş", "c": ["n01440764", "goldfish"]}
    file.write_text(json.dumps(names))
    assert read_class_names(file, ["a", "b", "c"]) == ["tench", "güneş", "goldfish"]


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


@pytest.mark.parametrize(
    "value", [None, 3, True, [], {}, "", " ", ["a", None], [["a"]], [""], "\ud83d"]
)
def test_what_is_no_name_is_refused_by_key_and_value(tmp_path, value):
    (tmp_path / "a.json").write_text(json.dumps({"cat": "tabby", "dog": value}))
    with pytest.raises(ValueError, match=r"a\.json calls 'dog' ") as error:
        read_class_names(tmp_path / "a.json", ["cat", "dog"])
    assert f"'dog' {value!r}:" in str(error.value)


def test_lines_for_folders_of_unclear_order_are_refused(tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\nten\n")
    with pytest.raises(ValueError, match=r"'class_10', as letters .* 'class_2', as numbers.*json"):
        read_class_names(tmp_path / "names.txt", in_order(["class_1", "class_2", "class_10"]))
    assert read_class_names(tmp_path / "names.txt", ["c_1", "c_2", "c_9"]) == ["one", "two", "ten"]
