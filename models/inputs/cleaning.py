"""What open_clip does to a text before it is cut into tokens, which is part of how it was trained.

A `tokenizer.json` does not do it, whatever checkpoint it lies beside.
"""

import html
import string

import ftfy

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _mended(text):
    """Straight quotes, common widths and encodings, no marks or entities; one space between."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def without_punctuation(text) -> str:
    """The text without ASCII's punctuation, one space between words."""
    return " ".join(text.translate(_PUNCTUATION).split())


# By open_clip's names; "none" is for all others, whose tokenizers clean texts themselves.
CLEANINGS = {
    "none": lambda text: text,
    "whitespace": _mended,
    "lower": lambda text: _mended(text).lower(),
    "canonicalize": lambda text: without_punctuation(_mended(text).replace("_", " ")).lower(),
}
