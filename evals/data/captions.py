"""Captioned images from the json files of the field: COCO's, and Karpathy's of several sets."""

import json
import pathlib

import numpy as np

from evals.data.notices import say
from evals.data.records import CaptionedImages

KARPATHY_SPLIT = "test"


def captioned_images(path, *, images=None, split=None, limit=None) -> CaptionedImages:
    """The images of a captions json that have a caption, with any number of them each.

    Args:
      path: a COCO captions json, or a Karpathy json (`dataset_flickr30k.json`).
      images: the folder of the images; default: the json's own.
      split: of a Karpathy json; default: "test".
      limit: how many images to take, the first ones.

    Raises:
      FileNotFoundError: an image that the json names is not in the folder.
      ValueError: another json, one without captions, or without that split.
    """
    path = pathlib.Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        read = _coco if "annotations" in content else _karpathy
        entries = read(content, split)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is not a COCO or Karpathy captions json: {error!r}") from None
    described = [(name, captions) for name, captions in entries if captions]
    if not described:
        raise ValueError(f"{path} has no captions")
    if missing := len(entries) - len(described):
        say(f"{missing} of {len(entries)} images of {path} have no caption and are left out")
    chosen = described[:limit]
    files = _files([name for name, _ in chosen], pathlib.Path(images or path.parent), path)
    pairs = [(owner, text) for owner, (_, captions) in enumerate(chosen) for text in captions]
    owners, captions = zip(*pairs)
    return CaptionedImages(files, captions, np.array(owners))


def _coco(content, split):
    """File name and captions of each image, in the order of their ids."""
    if split is not None:
        raise ValueError(f"a COCO json has no splits, got {split!r}")
    names = {entry["id"]: _plain_name(entry["file_name"]) for entry in content["images"]}
    captions_of = {image: [] for image in sorted(names)}
    for entry in content["annotations"]:
        if entry["image_id"] not in captions_of:
            raise ValueError(f"a caption is of the unlisted image {entry['image_id']!r}")
        captions_of[entry["image_id"]] += _texts([entry["caption"]])
    return [(names[image], captions) for image, captions in captions_of.items()]


def _karpathy(content, split):
    """File name and captions of each image of the split, in the order of the file."""
    entries, split = content["images"], split or KARPATHY_SPLIT
    if split not in (splits := {entry["split"] for entry in entries}):
        raise ValueError(f"no split {split!r}, only {', '.join(sorted(splits))}")
    return [
        (
            _plain_name(str(pathlib.PurePath(entry.get("filepath", ""), entry["filename"]))),
            _texts([sentence["raw"] for sentence in entry["sentences"]]),
        )
        for entry in entries
        if entry["split"] == split
    ]


def _texts(captions):
    """Those that say something."""
    captions = [caption for caption in captions if caption is not None]
    if strange := [caption for caption in captions if not isinstance(caption, str)]:
        raise ValueError(f"{strange[0]!r} is no caption")
    return [caption for caption in captions if caption.strip()]


def _files(names, folder, path):
    files = [folder / name for name in names]
    if missing := [file for file in files if not file.is_file()]:
        others = f", nor do {len(missing) - 1} other images of {path}" if missing[1:] else ""
        raise FileNotFoundError(
            f"{missing[0]} does not exist{others}; set --config.data_images to their folder"
        )
    return files


def _plain_name(name):
    """A path inside the image folder: what a json says may not lead out of it."""
    parts = pathlib.PurePath(name).parts
    if not parts or ".." in parts or pathlib.PurePath(name).is_absolute():
        raise ValueError(f"the file name {name!r} leads out of the image folder")
    return name
