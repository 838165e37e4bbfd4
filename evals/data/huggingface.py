"""Folders that `save_to_disk` of Hugging Face `datasets` wrote: images with labels or captions.

Needs the library `datasets` (requirements-datasets.txt). Nothing is fetched, and no code that comes
with the data runs: the folders hold tables, whose images are decoded here.
"""

import dataclasses
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from evals.data.folders import spread
from evals.data.notices import say
from evals.data.records import CaptionedImages, LabelledImages, Split
from evals.data.templates import check_templates

_TO_CLASSIFY = ("val", "validation", "test")  # splits; ImageNet's test has no labels
_TO_RETRIEVE = ("test", "validation", "val")
_CAPTION_COLUMNS = ("caption", "captions", "sentences", "text")


@dataclasses.dataclass(frozen=True)
class StoredImage:
    """An image in a row of a table, for `evals.data.read_image`."""

    table: Any
    column: str
    row: int

    def open_image(self):
        """The Pillow image; raises ValueError where there is none."""
        stored = self.table[self.row][self.column] or {}
        if stored.get("bytes") is not None:
            return Image.open(io.BytesIO(stored["bytes"]))
        if not (path := pathlib.Path(stored.get("path") or "")).is_file():  # URLs stay unfetched
            raise ValueError(f"the row holds no image, and {str(path)!r} is no file")
        return Image.open(path)

    def __str__(self):
        return f"{_folder(self.table)}, row {self.row}"

    @property
    def identity(self):
        """What tells it from every other image, for `evals.running.cache`."""
        return f"{self}, {self.column}, {self.table._fingerprint}"


def is_huggingface(path) -> bool:
    """Whether `save_to_disk` wrote that folder, with splits or without."""
    return any(
        (pathlib.Path(path) / name).is_file() for name in ("dataset_dict.json", "state.json")
    )


def huggingface_labelled(path, *, templates, split=None, limit=None) -> LabelledImages | None:
    """The images of a split with their classes; None where no column has class labels.

    Underscores in class names read as spaces; images without label (−1) are left out.

    Args:
      path: the folder.
      templates: sentences with `{}` for the name.
      split: of the splits; default: the first of validation and test that is there.
      limit: how many images to take, spread over all.

    Raises:
      ValueError: `datasets` is not installed, the folder is damaged, there is no such split, or it
        is not clear which column to take.
    """
    check_templates(templates)
    return _labelled(_table(_load(path), split, _TO_CLASSIFY, path), templates, limit)


def huggingface_split(path, *, templates, split=None, limit=None) -> Split | None:
    """The split "train" and what `huggingface_labelled` gives; None where there is no such pair."""
    check_templates(templates)
    loaded = _load(path)
    if not isinstance(loaded, dict) or "train" not in loaded:
        return None
    parts = [_table(loaded, name, _TO_CLASSIFY, path) for name in ("train", split)]
    train, test = (_labelled(part, templates, limit) for part in parts)
    return None if train is None else Split(train, test)


def huggingface_captioned(path, *, split=None, limit=None) -> CaptionedImages | None:
    """The images of a split with their captions, one text or a list; None without such a column.

    Arguments are those of `huggingface_labelled`; test comes before validation.
    """
    table = _table(_load(path), split, _TO_RETRIEVE, path)
    captions = (name for name in _CAPTION_COLUMNS if _is_text(table.features.get(name)))
    if (column := next(captions, None)) is None:
        return None
    texts = [[text] if isinstance(text, str) else text or [] for text in table[column]]
    texts = [[text for text in captions if text and text.strip()] for captions in texts]
    described = [row for row, captions in enumerate(texts) if captions]
    _say_missing("caption", len(table) - len(described), table)
    rows = spread(described, limit)
    pairs = [(owner, text) for owner, row in enumerate(rows) for text in texts[row]]
    if not pairs:
        raise ValueError(f"{path} has no captions in the column {column!r}")
    owners, captions = zip(*pairs)
    return CaptionedImages(_images(table, rows), captions, np.array(owners))


def _labelled(table, templates, limit):
    if (column := _column(table, "ClassLabel", "label")) is None:
        return None
    labels = np.array(table[column][:])
    known = np.flatnonzero(labels >= 0)
    _say_missing("label", len(table) - len(known), table)
    if not len(known):
        raise ValueError(f"{_folder(table)} has no labels in the column {column!r}")
    rows = spread(known, limit)
    names = [name.replace("_", " ") for name in table.features[column].names]
    return LabelledImages(_images(table, rows), labels[rows], names, templates)


def _load(path):
    """A dataset, or a dictionary of them."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"{path} needs the library datasets: pip install -r requirements-datasets.txt"
        ) from None
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # damaged and hostile tables raise many types
        raise ValueError(f"{path} is not what datasets saves to disk: {error!r}") from None


def _table(loaded, split, preferred, path):
    """The dataset of that split, or of the first of the preferred; a single one is of no split."""
    if not isinstance(loaded, dict):
        if split is not None:
            raise ValueError(f"{path} has no splits, got --config.data_split={split!r}")
        return loaded
    split = split or next((name for name in preferred if name in loaded), None)
    if split not in loaded:
        raise ValueError(
            f"{path} has no split {split or preferred[0]!r}; choose one of "
            f"{', '.join(sorted(loaded))} with --config.data_split"
        )
    return loaded[split]


def _column(table, feature, preferred):
    """The column with that class of feature: the only one, or that of preferred name; or None."""
    found = [name for name, kind in table.features.items() if type(kind).__name__ == feature]
    if len(found) > 1 and preferred not in found:
        raise ValueError(
            f"{_folder(table)} has the columns {', '.join(found)}; rename the one to use to "
            f"{preferred!r}"
        )
    return preferred if preferred in found else next(iter(found), None)


def _is_text(feature):
    """Whether it is a text, or a list of them."""
    feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)
    return getattr(feature, "dtype", None) == "string"


def _images(table, rows):
    if (column := _column(table, "Image", "image")) is None:
        raise ValueError(f"{_folder(table)} has no column of images")
    import datasets

    table = table.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    return [StoredImage(table, column, int(row)) for row in rows]


def _say_missing(what, number, table):
    if number:
        say(f"{number} of {len(table)} images of {_folder(table)} have no {what} and are left out")


def _folder(table):
    files = table.cache_files
    return str(pathlib.Path(files[0]["filename"]).parent) if files else "the table"
