"""Images in folders: any, or one folder per class."""

import os
import pathlib

import numpy as np

from evals.data.records import LabelledImages

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEMPLATES = ("a photo of a {}.",)


def image_files(sources, *, limit=None) -> list[pathlib.Path]:
    """The images below a folder, sorted, or the files named; of several sources one after another.

    Args:
      sources: a path, or several, each of a folder or a file.
      limit: how many to take of them, spread over all.

    Raises:
      FileNotFoundError: a path that does not exist, or a folder without images.
    """
    files = []
    for source in [sources] if isinstance(sources, str | pathlib.Path) else sources:
        path = pathlib.Path(os.path.expanduser(source))
        if not path.exists():
            raise FileNotFoundError(f"{source} does not exist; give image files, or folders")
        found = _images_below(path) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(
                f"the folder {source} holds no images ({', '.join(IMAGE_SUFFIXES)})"
            )
        files += found
    return spread(files, limit)


def image_folder(path, *, templates, limit=None) -> LabelledImages:
    """Images in one folder per class; underscores in folder names read as spaces.

    Raises:
      FileNotFoundError: no such folder, or no image in any folder below it.
      ValueError: a template without a place for the name, or none.
    """
    if unnamed := [template for template in templates if "{}" not in template]:
        raise ValueError(f"a template needs {{}} where the class name goes, got {unnamed[0]!r}")
    if not templates:
        raise ValueError("zero-shot classification needs at least one template")
    path = pathlib.Path(path)
    files_of = {
        folder: _images_below(folder)
        for folder in sorted(path.iterdir())
        if folder.is_dir() and not folder.name.startswith((".", "__"))
    }
    classes = [folder for folder, files in files_of.items() if files]
    found = [(file, label) for label, folder in enumerate(classes) for file in files_of[folder]]
    if not found:
        raise FileNotFoundError(
            f"{path} holds no images in class folders; expected {path}/CLASS_NAME/IMAGE.jpg"
        )
    files, labels = zip(*spread(found, limit))
    names = [folder.name.replace("_", " ") for folder in classes]
    return LabelledImages(files, np.array(labels), names, templates)


def _images_below(folder):
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(file for file in files if not file.is_dir())


def spread(items, limit):
    """At most `limit` of the items, evenly spaced; all for None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).astype(int)]
