"""Labelled and captioned images: the embedded scenes, image folders, COCO captions."""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from evals import digit_scenes

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TEMPLATES = ("a photo of a {}.",)
# Seeds of the embedded test sets.
_SINGLE_SEED, _MULTIPLE_SEED = 1, 2
_READERS = 4  # threads that decode images


class UnreadableImage(ValueError):
    """An image that does not open: its path in `file`, the cause in `reason`."""

    def __init__(self, file, cause):
        self.file, self.reason = str(file), str(cause)
        super().__init__(f"{file} cannot be read as an image: {cause}")


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """M images with class labels, and how to say a class in words.

    Attributes:
      images: M image paths, or uint8 arrays `[height, width, 3]`.
      labels: int `[M]`.
      class_names: K names.
      templates: sentences with `{}` for the name; a class is their mean embedding.
    """

    images: Sequence
    labels: np.ndarray
    class_names: Sequence[str]
    templates: Sequence[str]


@dataclasses.dataclass(frozen=True)
class CaptionedImages:
    """M images and L captions; an image may have several.

    Attributes:
      images: M image paths, or uint8 arrays `[height, width, 3]`.
      captions: L sentences.
      image_of_caption: int `[L]`, the image that each caption describes.
    """

    images: Sequence
    captions: Sequence[str]
    image_of_caption: np.ndarray


def single_digit_scenes(count) -> LabelledImages:
    """Embedded test scenes with one digit each, to be classified by it."""
    scenes = digit_scenes.make_scenes("test", count, seed=_SINGLE_SEED, num_digits=(1, 1))
    return LabelledImages(
        images=scenes.images,
        labels=scenes.digits.max(axis=1),
        class_names=digit_scenes.DIGIT_NAMES,
        templates=[digit_scenes.phrase("{}", place) for place in digit_scenes.PLACES],
    )


def multiple_digit_scenes(count) -> CaptionedImages:
    """Embedded test scenes with two to four digits each, no two with the same caption."""
    scenes = digit_scenes.make_scenes(
        "test", count, seed=_MULTIPLE_SEED, num_digits=(2, 4), distinct=True
    )
    return CaptionedImages(scenes.images, scenes.captions, np.arange(count))


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
    return _spread(files, limit)


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
    files, labels = zip(*_spread(found, limit))
    names = [folder.name.replace("_", " ") for folder in classes]
    return LabelledImages(files, np.array(labels), names, templates)


def coco_captions(path, *, images=None, limit=None) -> CaptionedImages:
    """A COCO captions json with the folder of its images (default: the json's own folder).

    Raises:
      FileNotFoundError: an image that the json names is not in the folder.
      ValueError: a file that is not a COCO captions json.
    """
    path = pathlib.Path(path)
    folder = pathlib.Path(images) if images else path.parent
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = {entry["id"]: _plain_name(entry["file_name"]) for entry in content["images"]}
        pairs = [(e["image_id"], str(e["caption"])) for e in content["annotations"]]
        unknown = sorted({image for image, _ in pairs} - set(names))
        described = sorted({image for image, _ in pairs})[:limit]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a COCO captions json: {error!r}") from None
    if unknown or not pairs:
        raise ValueError(f"{path} has no captions, or captions of unlisted images {unknown[:3]}")
    position = {image: index for index, image in enumerate(described)}
    files = [folder / names[image] for image in described]
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(
            f"{missing[0]} does not exist, nor do {len(missing) - 1} other images of {path}; "
            "set --config.data_images to their folder"
        )
    pairs = [(position[image], text) for image, text in pairs if image in position]
    owners, captions = zip(*pairs)
    return CaptionedImages(files, captions, np.array(owners))


def batches(images, preprocess, batch_size, *, skipped=None):
    """Yields `(batch, count)`: float32 `[batch_size, height, width, 3]`, of which count are real.

    The next batch is read while one is computed on. What is missing is filled up with zeros.

    Args:
      images: paths, or uint8 arrays `[height, width, 3]`.
      preprocess: an image to float32 `[height, width, 3]`.
      batch_size: at most that many at once.
      skipped: a list; images that do not open are left out, and their errors added to it.

    Raises:
      ValueError: an image that does not open, or images that differ in size once preprocessed.
    """
    starts = range(0, len(images), batch_size)
    with (
        concurrent.futures.ThreadPoolExecutor(_READERS) as pool,
        concurrent.futures.ThreadPoolExecutor(1) as ahead,
    ):

        def read(start):
            items = images[start : start + batch_size]
            arrays = list(pool.map(lambda item: _read(item, preprocess), items))
            for error in (array for array in arrays if isinstance(array, UnreadableImage)):
                if skipped is None:
                    raise error
                skipped.append(error)
            return _stack([a for a in arrays if isinstance(a, np.ndarray)], batch_size)

        upcoming = None
        for start in starts:
            batch, count = upcoming.result() if upcoming else read(start)
            following = start + batch_size
            upcoming = ahead.submit(read, following) if following < len(images) else None
            if count:
                yield batch, count


def _images_below(folder):
    files = (file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(file for file in files if not file.is_dir())


def _spread(items, limit):
    """At most `limit` of the items, evenly spaced; all for None."""
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).astype(int)]


def _plain_name(name):
    """A path inside the image folder: what a json says may not lead out of it."""
    parts = pathlib.PurePath(name).parts
    if not parts or ".." in parts or pathlib.PurePath(name).is_absolute():
        raise ValueError(f"the file name {name!r} leads out of the image folder")
    return name


def _read(item, preprocess):
    """The preprocessed image, or why there is none."""
    if isinstance(item, np.ndarray):
        return preprocess(item)
    try:
        with Image.open(item) as image:
            return preprocess(image)
    except Exception as error:  # Pillow raises many types on damaged and hostile files
        return UnreadableImage(item, error)


def _stack(arrays, batch_size):
    if not arrays:
        return None, 0
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f"the images differ in size after preprocessing: {sorted(shapes)}; the checkpoint's "
            "preprocessing must crop or resize to one size"
        )
    batch = np.zeros((batch_size, *shapes.pop()), np.float32)
    batch[: len(arrays)] = arrays
    return batch, len(arrays)
