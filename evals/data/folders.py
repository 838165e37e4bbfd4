"""Images in folders: any, or one folder per class."""

import json
import os
import pathlib

import numpy as np

from evals.data.notices import say
from evals.data.records import LabelledImages, Split
from evals.data.templates import check_templates

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_HIDDEN = (".", "__")  # what names of folders begin with that are no data
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
            raise FileNotFoundError(
                f"the folder {source} holds no images ({', '.join(IMAGE_SUFFIXES)})"
            )
        files += found
    return spread(files, limit)


def image_folder(path, *, templates, class_names=None, limit=None) -> LabelledImages:
    """Images in one folder per class.

    Args:
      path: the folder of those folders.
      templates: sentences with `{}` for the name.
      class_names: a file of names, as `read_class_names` takes it; default: the folders' own, with
        spaces for underscores.
      limit: how many images to take, spread over all.

    Raises:
      FileNotFoundError: no such folder, or no image in any folder below it.
      ValueError: a template without a place for the name, or names that do not fit.
    """
    files_of = _class_folders(path)
    return _labelled(files_of, sorted(files_of), templates, class_names, limit)


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
        _labelled(part, sorted(files_of), templates, class_names, limit)
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
    """The images of each class folder that holds some, by its name."""
    files_of = {
        folder.name: images_below(folder)
        for folder in pathlib.Path(path).iterdir()
        if folder.is_dir() and not folder.name.startswith(_HIDDEN)
    }
    if not any(files_of.values()):
        raise FileNotFoundError(
            f"{path} holds no images in class folders; expected {path}/CLASS_NAME/IMAGE.jpg"
        )
    return {name: files for name, files in files_of.items() if files}


def _labelled(files_of, folders, templates, class_names, limit):
    check_templates(templates)
    found = [(file, k) for k, name in enumerate(folders) for file in files_of.get(name, ())]
    files, labels = zip(*spread(found, limit))
    if class_names is None:
        names = [folder.replace("_", " ") for folder in folders]
    else:
        names = read_class_names(class_names, folders)
    return LabelledImages(files, np.array(labels), names, templates)


def read_class_names(file, folders) -> list[str]:
    """What the classes are called in words.

    Args:
      file: a json `{"FOLDER": "name", …}`, or a text with a name per line, in the order of the
        sorted folders.
      folders: K sorted names of folders.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a folder without a name, or not as many lines as folders.
    """
    file = pathlib.Path(os.path.expanduser(file))
    text = file.read_text(encoding="utf-8", errors="replace")
    if file.suffix == ".json":
        try:
            return [str(json.loads(text)[folder]) for folder in folders]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f'{file} must be a json {{"FOLDER": "name", …}} with all of {len(folders)} '
                f"folders: {error!r}"
            ) from None
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) != len(folders):
        raise ValueError(f"{file} names {len(names)} classes, but there are {len(folders)} folders")
    return names


def images_below(folder) -> list[pathlib.Path]:
    """The images in a folder and all folders in it, sorted; hidden ones are left out."""
    files = []
    for here, folders, names in os.walk(folder, onerror=_say_unread):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        files += [
            pathlib.Path(here, name)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        ]
    return sorted(files)


def _say_unread(error):
    say(f"{error.filename} cannot be read ({error.strerror}): its images are left out")


def spread(items, limit):
    """At most `limit` of the items, evenly spaced; all for None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).astype(int)]
