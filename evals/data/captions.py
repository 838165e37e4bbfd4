"""Captioned images from the json files of the field."""

import json
import pathlib

import numpy as np

from evals.data.records import CaptionedImages


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


def _plain_name(name):
    """A path inside the image folder: what a json says may not lead out of it."""
    parts = pathlib.PurePath(name).parts
    if not parts or ".." in parts or pathlib.PurePath(name).is_absolute():
        raise ValueError(f"the file name {name!r} leads out of the image folder")
    return name
