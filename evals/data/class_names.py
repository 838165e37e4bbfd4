"""The order of the classes in folders, and what they are called in words."""

import os
import pathlib
import re

from convert.errors import show
from evals.data.texts import is_text, read_json, read_lines

WORDNET_ID = re.compile(r"n\d{8}")  # as ImageNet's folders are called


def are_numbers(folders) -> bool:
    """Whether all names are numbers, of classes then."""
    return all(name.isascii() and name.isdigit() for name in folders)


def in_order(folders) -> list[str]:
    """Names of folders in the order of their classes: of numbers theirs, or else of the letters."""
    key = (lambda name: (int(name), name)) if are_numbers(folders) else None
    return sorted(folders, key=key)


def names_of(folders) -> list[str]:
    """The folders' own names, with spaces for underscores; ValueError for what is no text."""
    if bad := [name for name in folders if not is_text(name)]:
        raise ValueError(
            f"the name of the folder {bad[0]!r} is not UTF-8; rename it, or give a text with a "
            "name per line as --config.class_names"
        )
    return [name.replace("_", " ") for name in folders]


def read_class_names(file, folders) -> list[str]:
    """What the classes are called in words.

    Args:
      file: a json `{"FOLDER": "name", …}`, where the first of a list of synonyms is the name, or a
        text with a name per line, in the order of the folders.
      folders: K names of folders, `in_order`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is not UTF-8, a folder without a name, a name that is no text, or not
        as many lines as folders, or lines of which it is not clear whose they are.
    """
    file = pathlib.Path(os.path.expanduser(file))
    if file.suffix.lower() == ".json":
        return _names_of_json(file, folders)
    names = read_lines(file)
    if len(names) != len(folders):
        raise ValueError(f"{file} names {len(names)} classes, but there are {len(folders)} folders")
    for name, by_number in zip(folders, _by_number(folders)):
        if name != by_number:
            raise ValueError(
                f"{file} has a line per class, but is the next folder {name!r}, as letters order "
                f'them, or {by_number!r}, as numbers do? Give a json {{{name!r}: "name", …}}'
            )
    return names


def _by_number(folders):
    """Names such as `class_2` and `class_10` in the order of their numbers; others as given."""
    parts = {name: re.fullmatch("([^0-9]*)([0-9]+)", name) for name in folders}
    if None in parts.values() or len({part[1] for part in parts.values()}) > 1:
        return folders
    return sorted(folders, key=lambda name: int(parts[name][2]))


def _names_of_json(file, folders):
    content = read_json(file)
    wanted = f'{file} must be a json {{"FOLDER": "name", …}} with all of {len(folders)} folders'
    if not isinstance(content, dict):
        raise ValueError(f"{wanted}, not a {type(content).__name__}")
    if missing := [folder for folder in folders if folder not in content]:
        raise ValueError(f"{wanted}; it has none for {', '.join(map(repr, missing[:3]))}")
    return [_name(content[folder], folder, file) for folder in folders]


def _name(value, folder, file):
    """A text, or the first of several that is no WordNet id, which some files have in front."""
    names = value if isinstance(value, list) else [value]
    texts = [name.strip() for name in names if is_text(name) and name.strip()]
    words = [text for text in texts if not WORDNET_ID.fullmatch(text)]
    if len(texts) < len(names) or not words:
        raise ValueError(
            f"{file} calls {folder!r} {show(value)}: a name is a text, or a list of texts, the "
            "first of which is taken"
        )
    return words[0]
