"""The data that a config names, of the kinds that the tasks ask for.

What the config says of them; fields that it lacks, or that are None, have a default:

- `data`: "digit scenes", or a path: what lies there tells which of `FORMATS` it is.
- `data_images`: of a captions json, the folder of its images.
- `data_split`: of a Karpathy json or Hugging Face `datasets`, the split to test with.
- `train_data`: of class folders, others to train on.
- `class_names`, `templates`: as `image_folder` and `read_templates` of `evals.data` take them.
- `num_images`: how many of the user's images to take, of each part.
- `num_labelled_scenes`, `num_captioned_scenes`, `num_segmented_scenes`: embedded test scenes.
- `num_train_scenes`: embedded scenes to train on.
- `num_fidelity_images`: how many make "images".
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from evals import data as readers
from evals.data import huggingface
from evals.data.folders import spread

KINDS = ("labelled", "captioned", "labelled split", "segmented split", "images")
EMBEDDED = "digit scenes"
# Settings of some formats of a user's data; what is given in vain is refused.
OF_USERS = (
    "data_images",
    "data_split",
    "train_data",
    "class_names",
    "templates",
    "num_images",
)


def open_data(kind, config):
    """The data of a kind, or None where the config names none of it.

    Args:
      kind: one of `KINDS`. A split has data to train on; "images" are some of any that there are.
      config: as above.

    Raises:
      FileNotFoundError, ValueError: data that cannot be used.
    """
    of_kind = format_of(config).readers
    if kind != "images":
        return of_kind[kind](config) if kind in of_kind else None
    if "images" in of_kind:
        images = of_kind["images"](config)
    else:
        found = (open_data(other, config) for other in KINDS if other != "images")
        if (data := next((data for data in found if data is not None), None)) is None:
            raise ValueError(f"--config.data={config.data!r} has no labels, captions or label maps")
        images = getattr(data, "test", data).images
    return _sample(images, config.num_fidelity_images)


def _sample(images, count):
    """So many images spread over all, those of them that open."""
    tolerance, opened = readers.Tolerance(len(images)), []
    for image in spread(images, count):
        try:
            readers.read_image(image, np.asarray)
        except readers.UnreadableImage as error:
            tolerance.add([error])
        else:
            opened.append(image)
    tolerance.close()
    return opened


_EMBEDDED_SCENES = {
    "num_labelled_scenes": 400,
    "num_captioned_scenes": 1000,
    "num_segmented_scenes": 200,
}


@dataclasses.dataclass(frozen=True)
class Format:
    """A way to keep data.

    Attributes:
      name: what a user calls it.
      is_it: whether "digit scenes", or what lies at a path, is kept so.
      readers: functions of a config, by kind; they may give None.
      settings: the fields that they make use of, of those that say something of a user's data.
    """

    name: str
    is_it: Callable
    readers: dict
    settings: tuple[str, ...] = ("num_images",)


def format_of(config) -> Format:
    """The first of `FORMATS` that the data have.

    Raises:
      FileNotFoundError: nothing is there.
    """
    for format in FORMATS:
        if format.is_it(_path(config)):
            return format
    raise FileNotFoundError(
        f"--config.data={config.data!r} does not exist; give {'; '.join(f.name for f in FORMATS)}"
    )


def _path(config):
    return os.path.expanduser(config.data)


def _has_folders(*names):
    return lambda path: all(pathlib.Path(path, name).is_dir() for name in names)


def _count(config, name):
    return config.get(name) or _EMBEDDED_SCENES[name]


def _test_scenes(config):
    return readers.single_digit_scenes(_count(config, "num_labelled_scenes"))


def _captioned_scenes(config):
    return readers.multiple_digit_scenes(_count(config, "num_captioned_scenes"))


def _labelled_scenes(config):
    num_train = config.get("num_train_scenes") or 1000
    return readers.labelled_digit_scenes(num_train, _count(config, "num_labelled_scenes"))


def _segmented_scenes(config):
    num_train = config.get("num_train_scenes") or 300
    return readers.segmented_digit_scenes(num_train, _count(config, "num_segmented_scenes"))


def _ade20k(config):
    return readers.ade20k(_path(config), limit=config.get("num_images"))


def _pascal_voc(config):
    return readers.pascal_voc(_path(config), limit=config.get("num_images"))


def _huggingface(read, config, **settings):
    split = config.get("data_split")
    return read(_path(config), split=split, limit=config.get("num_images"), **settings)


def _labelled_table(config):
    templates = readers.read_templates(config.get("templates"))
    return _huggingface(huggingface.huggingface_labelled, config, templates=templates)


def _table_split(config):
    templates = readers.read_templates(config.get("templates"))
    return _huggingface(huggingface.huggingface_split, config, templates=templates)


def _captioned_table(config):
    return _huggingface(huggingface.huggingface_captioned, config)


def _labelled_folders(config):
    if (split := _folder_split(config)) is not None:  # so that both have the same classes
        return split.test
    return readers.image_folder(_path(config), **_of_folders(config))


def _folder_split(config):
    folders = readers.split_folders(_path(config))
    if (train := config.get("train_data")) is not None:
        folders = os.path.expanduser(train), _path(config)
    return readers.image_folder_split(*folders, **_of_folders(config)) if folders else None


def _of_folders(config):
    return {
        "templates": readers.read_templates(config.get("templates")),
        "class_names": config.get("class_names"),
        "limit": config.get("num_images"),
    }


def _images_of_folder(config):
    _, folder = readers.split_folders(_path(config)) or (None, _path(config))
    return readers.image_files(folder, limit=config.get("num_images"))


def _captions_json(config):
    return readers.captioned_images(
        _path(config),
        images=config.get("data_images"),
        split=config.get("data_split"),
        limit=config.get("num_images"),
    )


FORMATS = (
    Format(
        f"'{EMBEDDED}'",
        lambda path: path == EMBEDDED,
        {
            "labelled": _test_scenes,
            "captioned": _captioned_scenes,
            "labelled split": _labelled_scenes,
            "segmented split": _segmented_scenes,
            "images": lambda config: _captioned_scenes(config).images,
        },
        settings=(),
    ),
    Format(
        "ADE20K (a folder with images/ and annotations/, in each training/ and validation/)",
        _has_folders("images/validation", "annotations/validation"),
        {"segmented split": _ade20k},
    ),
    Format(
        "Pascal VOC (a folder with JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/)",
        _has_folders("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"),
        {"segmented split": _pascal_voc},
    ),
    Format(
        "what Hugging Face datasets saves to disk",
        huggingface.is_huggingface,
        {
            "labelled": _labelled_table,
            "captioned": _captioned_table,
            "labelled split": _table_split,
        },
        settings=("data_split", "templates", "num_images"),
    ),
    Format(
        "a folder with one folder of images per class, or such folders in train/ and val/",
        os.path.isdir,
        {
            "labelled": _labelled_folders,
            "labelled split": _folder_split,
            "images": _images_of_folder,
        },
        settings=("class_names", "num_images", "templates", "train_data"),
    ),
    Format(
        "a captions json of COCO's, Karpathy's or BLIP's form",
        os.path.isfile,
        {"captioned": _captions_json},
        settings=("data_images", "data_split", "num_images"),
    ),
)
