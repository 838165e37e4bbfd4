"""Images in folders: any, or one folder per class."""

import os
import pathlib

import numpy as np

from evals.data.class_names import in_order, names_of, read_class_names
from evals.data.finding import LeftOut, find_images, image_suffixes, images_below, is_hidden
from evals.data.records import LabelledImages, Split
from evals.data.templates import check_templates

TEST_FOLDERS = ("val", "validation", "test")  # beside `train`; the first that is there is read


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
        found = images_below(path) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"the folder {source} holds no images that Pillow opens")
        files += found
    return spread(files, limit)


def image_folder(path, *, templates, class_names=None, limit=None) -> LabelledImages:
    """Images in one folder per class, in the order of the names, or of the numbers that they are.

    Args:
      path: the folder of those folders.
      templates: sentences with `{}` for the name.
      class_names: a file of names, as `class_names.read_class_names` takes it; default: the
        folders' own, with spaces for underscores.
      limit: how many images to take, spread over all.

    Raises:
      FileNotFoundError: no such folder, or no image in any folder below it.
      ValueError: a template without a place for the name, or names that do not fit.
    """
    files_of = _class_folders(path)
    return _labelled(files_of, in_order(files_of), templates, class_names, limit)


def image_folder_split(train, test, *, templates, class_names=None, limit=None) -> Split:
    """Two such folders, with images to train on and to test with; one's classes are the other's.

    Args:
      train, test: the folders.
      templates, class_names, limit: as for `image_folder`; the limit is that of each.

    Raises:
      FileNotFoundError, ValueError: as for `image_folder`, or a test class without training images.
    """
    files_of, tested = _class_folders(train), _class_folders(test)
    if unknown := sorted(tested.keys() - files_of.keys()):
        raise ValueError(f"{test} has images of {unknown[0]!r}, of which {train} has none")
    parts = (
        _labelled(part, in_order(files_of), templates, class_names, limit)
        for part in (files_of, tested)
    )
    return Split(*parts)


def split_folders(path):
    """The folders of the parts of `path`, `train` and the first of `TEST_FOLDERS`; None if none."""
    path = pathlib.Path(path)
    train = path / "train"
    test = next((path / name for name in TEST_FOLDERS if (path / name).is_dir()), None)
    return (train, test) if train.is_dir() and test is not None else None


def _class_folders(path):
    """The images of each class folder that holds some, by its name; says what else lies there."""
    path, files_of = pathlib.Path(path), {}
    left_out = LeftOut(path)
    for item in sorted(path.iterdir()):
        if not item.is_dir():
            if item.suffix.lower() in image_suffixes() and not item.name.startswith("."):
                left_out.add("images in no class folder", item)
        elif not is_hidden(path, item.name, left_out):
            files_of[item.name] = find_images(item, left_out)
    left_out.say()
    if not any(files_of.values()):
        raise FileNotFoundError(
            f"{path} holds no images in class folders; expected {path}/CLASS_NAME/IMAGE.jpg"
        )
    return {name: files for name, files in files_of.items() if files}


def _labelled(files_of, folders, templates, class_names, limit):
    check_templates(templates)
    found = [(file, k) for k, name in enumerate(folders) for file in files_of.get(name, ())]
    files, labels = zip(*spread(found, limit))
    names = names_of(folders) if class_names is None else read_class_names(class_names, folders)
    return LabelledImages(files, np.array(labels), names, templates, folders)


def spread(items, limit):
    """At most `limit` of the items, evenly spaced; all for None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).astype(int)]
