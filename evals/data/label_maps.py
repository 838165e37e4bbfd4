"""Images with a class for every pixel: the folders of ADE20K and of Pascal VOC."""

import pathlib
import re

import numpy as np

from evals.data.finding import images_below
from evals.data.folders import spread
from evals.data.records import IGNORED, SegmentedImages, Split
from evals.data.texts import read_lines, read_text
from evals.data.unreadable import read_image
from models.inputs.preprocessor import SIDEWAYS, turn_of

VOC_CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_ADE20K_CLASSES = 150
_ADE20K_NAMES = "objectInfo150.txt"


def ade20k(path, *, limit=None) -> Split:
    """ADEChallengeData2016, a folder of `images` and `annotations/{training,validation}`.

    Label 0 ("other") is `IGNORED`, 1 to 150 are classes 0 to 149, named in `objectInfo150.txt`.

    Args:
      path: the folder.
      limit: images of each part, spread over it.

    Raises:
      FileNotFoundError: no images in a part, or an image without its label map.
      ValueError: a table of names that is not UTF-8, or not of 150 names.
    """
    path = pathlib.Path(path)

    def part(name):
        images = spread(images_below(path / "images" / name), limit)
        labels = [path / "annotations" / name / f"{image.stem}.png" for image in images]
        return _segmented(path / "images" / name, images, labels, names, first_label=1)

    names = _ade20k_names(path / _ADE20K_NAMES)
    return Split(part("training"), part("validation"))


def _ade20k_names(file):
    """Of the table's lines, whose last column is the name and its synonyms; numbers without it."""
    if not file.is_file():
        return [f"class {number + 1}" for number in range(_ADE20K_CLASSES)]
    names = [line.split("\t")[-1] for line in read_lines(file)[1:]]
    names = [re.split("[,;]", name)[0].strip() for name in names]
    if len(names) != _ADE20K_CLASSES:
        raise ValueError(f"{file} names {len(names)} classes, not {_ADE20K_CLASSES}")
    return names


def pascal_voc(path, *, limit=None) -> Split:
    """VOC2012, a folder of `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation`.

    Arguments are those of `ade20k`.

    Raises:
      FileNotFoundError: a list, an image, or a label map is missing.
      ValueError: a list that is not UTF-8, or that names something outside the folder.
    """
    path = pathlib.Path(path)

    def part(name):
        file = path / "ImageSets" / "Segmentation" / f"{name}.txt"
        stems = spread(read_text(file).split(), limit)
        if bad := [stem for stem in stems if pathlib.PurePath(stem).name != stem]:
            raise ValueError(f"{file} names {bad[0]!r}, which is no name of an image")
        images = [path / "JPEGImages" / f"{stem}.jpg" for stem in stems]
        labels = [path / "SegmentationClass" / f"{stem}.png" for stem in stems]
        return _segmented(file, images, labels, VOC_CLASSES)

    return Split(part("train"), part("val"))


def _segmented(source, images, label_maps, class_names, **fields):
    if not images:
        raise FileNotFoundError(f"{source} gives no images")
    for file in (*images, *label_maps):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist, though {source} asks for it")
    return SegmentedImages(images, label_maps, class_names, **fields)


def read_label_map(data: SegmentedImages, row) -> np.ndarray:
    """The classes of an image's pixels, uint8 `[height, width]`: below K, or `IGNORED`.

    Raises:
      UnreadableImage: a file that does not open.
      ValueError: a label map of another size than its image, one that holds colours, or a label
        that is no class.
    """
    item = data.label_maps[row]
    name = f"label map {row}" if isinstance(item, np.ndarray) else str(item)
    labels = read_image(item, np.asarray)  # of a palette the indices
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"{name} does not hold an index of 8 bits for each pixel; expected a grey image or one "
            "with a palette"
        )
    if labels.shape != (size := read_image(data.images[row], _size)):
        sizes = [" × ".join(map(str, shape)) for shape in (labels.shape, size)]
        raise ValueError(f"{name} is {sizes[0]} pixels, but its image {sizes[1]}")
    first, last = data.first_label, data.first_label + len(data.class_names) - 1
    values = np.arange(256)
    found = values[np.bincount(labels.ravel(), minlength=256) > 0]
    if (unknown := found[(found > last) & (found != IGNORED)]).size:
        raise ValueError(
            f"{name} holds the label {unknown[0]}; classes are {first} to {last}, and {IGNORED} "
            "is ignored"
        )
    classes = np.where((values < first) | (values > last), IGNORED, values - first)
    return classes.astype(np.uint8)[labels]


def _size(image):
    """Height and width as shown, which is how it is preprocessed."""
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    return image.size if turn_of(image) in SIDEWAYS else image.size[::-1]
