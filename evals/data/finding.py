"""The images below a folder, and a word about all else that lies there."""

import collections
import functools
import os
import pathlib

from PIL import Image, ImageFile

from evals.data.notices import say

# Beginnings of names that systems leave behind, and which hold no images of a user's.
_LITTER = ("._", ".DS_Store", "__MACOSX", "Thumbs.db", "desktop.ini")
_NOT_BY_PILLOW = ("EPS", "MPEG")  # another program has to run; it only recognises them
_NAMED = 3  # folders of each kind


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Of the files that Pillow opens here, with their dots, in lower case."""
    Image.init()
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if _opens(kind)
    )


def _opens(kind):
    if kind == "MPO":  # several JPEGs in one file, which the reader of JPEG opens
        return True
    factory = Image.OPEN.get(kind, (None,))[0]
    stub = isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)
    return factory is not None and not stub and kind not in _NOT_BY_PILLOW


class LeftOut:
    """What lies below a folder and is not read, by kind: how much of it, and in which folders."""

    def __init__(self, folder):
        self.folder, self.found = pathlib.Path(folder), collections.defaultdict(list)

    def add(self, kind, path) -> None:
        """Counts a file or a folder."""
        self.found[kind].append(pathlib.Path(path).parent)

    def __str__(self):
        kinds = sorted(self.found.items(), key=lambda item: (-len(item[1]), item[0]))
        return "; ".join(
            f"{len(parents)} {kind} ({self._named(parents)})" for kind, parents in kinds
        )

    def _named(self, parents):
        folders = list(dict.fromkeys(os.path.relpath(path, self.folder) for path in parents))
        more = f" and {len(folders) - _NAMED} more folders" if len(folders) > _NAMED else ""
        return f"in {', '.join(folders[:_NAMED])}{more}"

    def say(self) -> None:
        """Names it on stderr."""
        if self.found:
            say(f"left out below {self.folder}: {self}")


def images_below(folder) -> list[pathlib.Path]:
    """The images in a folder and all folders in it, linked ones too, sorted; says what is no image.

    Hidden files and folders are left out.
    """
    left_out = LeftOut(folder)
    files = find_images(folder, left_out)
    left_out.say()
    return files


def find_images(folder, left_out: LeftOut) -> list[pathlib.Path]:
    """As `images_below`, with all else counted in `left_out`.

    Each folder is read once, by whatever links it is met: a link to one that holds it ends there.
    """
    files, start = [], pathlib.Path(folder).resolve()
    met = {_identity(holder) for holder in start.parents}
    for here, folders, names in os.walk(folder, onerror=_say_unread, followlinks=True):
        if (identity := _identity(here)) in met:
            folders.clear()
            continue
        met.add(identity)
        folders[:] = sorted(name for name in folders if not is_hidden(here, name, left_out))
        files += [pathlib.Path(here, name) for name in names if _is_image(here, name, left_out)]
    return sorted(files)


def is_hidden(here, name, left_out: LeftOut) -> bool:
    """Whether a folder of that name is none to look into; counted, unless it is a system's."""
    if name.startswith(".") and not name.startswith(_LITTER):
        left_out.add("hidden folders", pathlib.Path(here, name))
    return name.startswith((".", *_LITTER))


def _is_image(here, name, left_out):
    if name.startswith(_LITTER):
        return False
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        kind = "hidden files"
    elif suffix in image_suffixes():
        return True
    else:
        kind = f"{suffix} files" if suffix else "files without suffix"
    left_out.add(kind, pathlib.Path(here, name))
    return False


def _identity(folder):
    """What tells it from every other folder, whatever path leads there."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _say_unread(error):
    say(f"{error.filename} cannot be read ({error.strerror}): its images are left out")
