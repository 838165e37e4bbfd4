"""Text files that users give: UTF-8 and nothing else, so that no name is read wrongly."""

import json
import pathlib
import re


def read_text(file) -> str:
    """The text of a file in UTF-8, without byte order marks, and with newlines between lines.

    Raises:
      ValueError: a file that is not UTF-8, or that holds zero bytes, as UTF-16 does.
    """
    file = pathlib.Path(file)
    try:
        text = file.read_text(encoding="utf-8").replace("\ufeff", "")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, f"byte {error.start} is {error.object[error.start]:#04x}") from None
    if "\0" in text:
        raise _not_utf8(file, "it holds zero bytes")
    return text


def _not_utf8(file, reason):
    return ValueError(
        f"{file} is not text in UTF-8 ({reason}): save it with that encoding, for instance by "
        f"iconv -f CP1252 -t UTF-8 (or -f UTF-16), whichever it has"
    )


def read_lines(file) -> list[str]:
    """The lines that hold something, without white space around them; raises as `read_text`."""
    return [line.strip() for line in read_text(file).split("\n") if line.strip()]


def is_text(value) -> bool:
    """Whether it is text that UTF-8 can hold, not half a character as json and files' names may."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def read_json(file):
    """The content of a json.

    Raises:
      ValueError: as `read_text`, or no json.
    """
    text = read_text(file)
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file} is no json: {error}") from None
    except RecursionError:
        raise ValueError(f"{file} is no json that can be read: it is nested too deeply") from None
