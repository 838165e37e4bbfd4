"""Captioned images from the json files of the field: COCO's, Karpathy's of several sets, BLIP's."""

import pathlib
import unicodedata

import numpy as np

from convert.errors import show
from evals.data.json_fields import field, objects, plain_name
from evals.data.notices import say
from evals.data.records import CaptionedImages
from evals.data.texts import is_text, read_json

KARPATHY_SPLIT = "test"


def captioned_images(path, *, images=None, split=None, limit=None) -> CaptionedImages:
    """The images of a captions json that have a caption, with any number of them each.

    Args:
      path: a COCO captions json, a Karpathy json (`dataset_flickr30k.json`), or a list of images
        with captions such as BLIP's (`coco_karpathy_test.json`).
      images: the folder of the images; default: the json's own. Their names match whatever Unicode
        composes them of, and with backslashes between folders too.
      split: of a Karpathy json; default: "test".
      limit: how many images to take, the first ones.

    Raises:
      FileNotFoundError: an image that the json names is not in the folder.
      ValueError: another json, one without captions, or without that split.
    """
    path = pathlib.Path(path)
    content = read_json(path)
    try:
        entries = _reader_of(content)(content, split)
    except ValueError as error:
        raise ValueError(f"{path} is no captions json that can be used: {error}") from None
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


def _reader_of(content):
    if isinstance(content, list):
        return _listed
    if not isinstance(content, dict) or "images" not in content:
        raise ValueError(
            "expected COCO's form (images and annotations), Karpathy's (images with sentences), or "
            "a list of images with captions"
        )
    if "annotations" in content:
        return _coco
    if any("sentences" in entry for entry in objects(content, "images")):
        return _karpathy
    raise ValueError(
        "it lists images, but has neither annotations (COCO's form) nor sentences (Karpathy's): "
        "such files come without captions; give captions_val2017.json, for instance"
    )


def _coco(content, split):
    """File name and captions of each image, in the order of their ids."""
    _refuse_split(split, "a COCO json")
    names = {}
    for entry in objects(content, "images"):
        image, name = _id(entry, "id"), plain_name(field(entry, "file_name"))
        if names.setdefault(image, name) != name:
            raise ValueError(f"two images have the id {image}: {names[image]!r} and {name!r}")
    captions_of = {image: [] for image in sorted(names, key=_in_order)}
    for entry in objects(content, "annotations"):
        if (image := _id(entry, "image_id")) not in captions_of:
            raise ValueError(f"a caption is of image {image}, which is not among its images")
        captions_of[image] += _texts([field(entry, "caption")])
    return [(names[image], captions) for image, captions in captions_of.items()]


def _karpathy(content, split):
    """File name and captions of each image of the split, in the order of the file."""
    entries, split = objects(content, "images"), split or KARPATHY_SPLIT
    splits = [str(field(entry, "split")) for entry in entries]
    if split not in splits:
        raise ValueError(f"no split {split!r}, only {', '.join(sorted(set(splits)))}")
    found = []
    for entry in (entry for entry, own in zip(entries, splits) if own == split):
        folder = entry.get("filepath", "")
        name = f"{folder}/{field(entry, 'filename')}" if folder else field(entry, "filename")
        sentences = objects(entry, "sentences")
        found.append((plain_name(name), _texts([field(said, "raw") for said in sentences])))
    return found


def _listed(content, split):
    """File name and captions of each image, in the order of the file; some have a line each."""
    _refuse_split(split, "a list of images with captions")
    captions_of = {}
    for entry in objects({"the list": content}, "the list"):
        captions = field(entry, "caption")
        captions = captions if isinstance(captions, list) else [captions]
        captions_of.setdefault(plain_name(field(entry, "image")), []).extend(_texts(captions))
    return list(captions_of.items())


def _refuse_split(split, what):
    if split is not None:
        raise ValueError(f"{what} has no splits, got --config.data_split={split!r}")


def _id(entry, name):
    """An image's id as text: some tools write the number 3 as "3", "0003", or 3.0."""
    value = field(entry, name)
    if (isinstance(value, float) and value.is_integer()) or _is_number(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{name} must be a number or a text, got {show(value)}")
    return str(value)


def _in_order(image):
    """To sort ids by: numbers, then texts."""
    return (0, int(image), image) if _is_number(image) else (1, 0, image)


def _is_number(text):
    return isinstance(text, str) and text.isascii() and text.isdigit()


def _texts(captions):
    """Those that say something."""
    captions = [caption for caption in captions if caption is not None]
    if strange := [caption for caption in captions if not is_text(caption)]:
        raise ValueError(f"{show(strange[0])} is no caption")
    return [caption for caption in captions if caption.strip()]


def _files(names, folder, path):
    stored = {}
    files = [_stored(folder, name, stored) for name in names]
    if missing := [file for file in files if not file.is_file()]:
        others = f", nor do {len(missing) - 1} other images of {path}" if missing[1:] else ""
        raise FileNotFoundError(
            f"{missing[0]} does not exist{others}; set --config.data_images to their folder"
        )
    return files


def _stored(folder, name, stored):
    """The file of that name, or the one whose name differs only in how Unicode composes it.

    Args:
      folder: of the images.
      name: of one, with slashes or backslashes between folders.
      stored: the names in each folder met, by their composed form; filled here.
    """
    if (file := folder / name).is_file():
        return file
    for part in name.replace("\\", "/").split("/"):
        if folder not in stored:
            entries = folder.iterdir() if folder.is_dir() else ()
            stored[folder] = {unicodedata.normalize("NFC", e.name): e.name for e in entries}
        folder /= stored[folder].get(unicodedata.normalize("NFC", part), part)
    return folder
