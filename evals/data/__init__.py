"""Images with labels, captions or label maps, and how they are read."""

from evals.data.captions import coco_captions
from evals.data.embedded import multiple_digit_scenes, single_digit_scenes
from evals.data.folders import TEMPLATES, image_files, image_folder
from evals.data.reading import Batch, UnreadableImage, batches
from evals.data.records import IGNORED, CaptionedImages, LabelledImages, SegmentedImages, Split

__all__ = [
    "IGNORED",
    "TEMPLATES",
    "Batch",
    "CaptionedImages",
    "LabelledImages",
    "SegmentedImages",
    "Split",
    "UnreadableImage",
    "batches",
    "coco_captions",
    "image_files",
    "image_folder",
    "multiple_digit_scenes",
    "single_digit_scenes",
]
