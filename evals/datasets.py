"""The data that a config names, of the kinds that the tasks ask for."""

import pathlib

import numpy as np

from evals import data as readers

KINDS = ("labelled", "captioned", "labelled split", "segmented split", "images")


def open_data(kind, config):
    """The data of a kind, or None where the config names none of it.

    Args:
      kind: one of `KINDS`. A split has data to train on; "images" are any images at all.
      config: names "digit scenes", a folder with class folders, or a COCO captions json in `data`.

    Raises:
      FileNotFoundError, ValueError: data that cannot be used.
    """
    if kind == "images":
        images = next(
            found.images
            for found in (open_data(other, config) for other in ("captioned", "labelled"))
            if found is not None
        )
        spread = np.linspace(0, len(images) - 1, min(config.num_fidelity_images, len(images)))
        return [images[i] for i in spread.astype(int)]
    if config.data == "digit scenes":
        return _embedded(kind, config)
    path = pathlib.Path(config.data)
    if path.is_dir() and kind == "labelled":
        return readers.image_folder(
            path, templates=config.templates or readers.TEMPLATES, limit=config.num_images
        )
    if path.is_file() and kind == "captioned":
        return readers.coco_captions(path, images=config.data_images, limit=config.num_images)
    if not path.exists():
        raise FileNotFoundError(
            f"--config.data={config.data!r} does not exist; give 'digit scenes', a folder with one "
            "folder of images per class, or a COCO captions json"
        )
    return None


def _embedded(kind, config):
    if kind == "labelled":
        return readers.single_digit_scenes(config.num_labelled_scenes)
    if kind == "captioned":
        return readers.multiple_digit_scenes(config.num_captioned_scenes)
    return None
