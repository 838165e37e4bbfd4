"""Fields of the json files that users give, each looked at before it is used."""

import pathlib

from convert.errors import show
from evals.data.texts import is_text


def objects(content, name):
    """A list of objects in the json."""
    found = field(content, name)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{name} must be a list of objects")
    return found


def field(entry, name):
    """The value of that name; raises ValueError where there is none."""
    if name not in entry:
        raise ValueError(f"there is no {name!r} in {show(entry)}")
    return entry[name]


def text(entry, name) -> str:
    """The text of that name, with more than white space in it."""
    found = field(entry, name)
    if not is_text(found) or not found.strip():
        raise ValueError(f"{name} must be a text, got {show(found)}")
    return found


def plain_name(name) -> str:
    """A path inside the image folder: what a json says may not lead out of it."""
    if not isinstance(name, str):
        raise ValueError(f"{show(name)} is no name of an image")
    for path in (pathlib.PurePosixPath(name), pathlib.PureWindowsPath(name)):
        if not path.parts or ".." in path.parts or path.anchor:
            raise ValueError(f"the file name {name!r} leads out of the image folder")
    return name
