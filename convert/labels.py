"""What the classes of a checkpoint's classifier are called."""

import json
import pathlib
from collections.abc import Mapping

from convert.errors import ConversionError, show
from convert.sources import CONFIG, LABELS, read_json, read_json_object


def read_labels(folder) -> tuple[str, ...] | None:
    """The names of a classifier's classes in the order of its outputs; None where nothing says.

    From `labels.json`, a list which `python -m convert` writes and anybody may, or else from what
    `config.json` says, `id2label` of transformers or `label_names` of timm. Whether there are as
    many as the model has classes is for the caller to compare.

    Args:
      folder: a converted directory, or one as published.

    Raises:
      ConversionError: a file that is damaged, or a list of anything but names.
    """
    folder = pathlib.Path(folder)
    if (file := folder / LABELS).is_file():
        names = read_json(file)
        if not _are_names(names):
            raise ConversionError(f"{show(str(file))} must hold a list of names, got {show(names)}")
        return tuple(names)
    file = folder / CONFIG
    return labels_of(read_json_object(file)) if file.is_file() else None


def write_labels(labels, folder) -> pathlib.Path:
    """The file in `folder` that `read_labels` reads."""
    file = pathlib.Path(folder) / LABELS
    file.write_text(json.dumps(labels, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return file


def labels_of(config: Mapping) -> tuple[str, ...] | None:
    """The names of the classes in a config of transformers or timm.

    None where it has none, or those that transformers makes up: LABEL_0, LABEL_1, …
    """
    names = config.get("label_names") or _in_order(config.get("id2label"))
    if not _are_names(names) or names == [f"LABEL_{i}" for i in range(len(names))]:
        return None
    return tuple(names)


def _in_order(id2label):
    """The values for the keys 0, 1, …, which JSON writes as texts; None where one is missing."""
    if not isinstance(id2label, Mapping):
        return None
    names = [id2label.get(str(i)) for i in range(len(id2label))]
    return None if None in names else names


def _are_names(names):
    return isinstance(names, list) and bool(names) and all(isinstance(x, str) for x in names)
