"""Images with labels, captions or label maps, and how they are read."""

from evals.data.captions import captioned_images
from evals.data.embedded import (
    labelled_digit_scenes,
    multiple_digit_scenes,
    segmented_digit_scenes,
    single_digit_scenes,
)
from evals.data.folders import image_files, image_folder, image_folder_split, split_folders
from evals.data.label_maps import ade20k, pascal_voc, read_label_map
from evals.data.reading import Batch, batches, read_ahead, sensible_workers
from evals.data.records import IGNORED, CaptionedImages, LabelledImages, SegmentedImages, Split
from evals.data.templates import read_templates
from evals.data.unreadable import Tolerance, UnreadableImage, read_image

__all__ = [
    "IGNORED",
    "Batch",
    "CaptionedImages",
    "LabelledImages",
    "SegmentedImages",
    "Split",
    "Tolerance",
    "UnreadableImage",
    "ade20k",
    "batches",
    "captioned_images",
    "image_files",
    "image_folder",
    "image_folder_split",
    "labelled_digit_scenes",
    "multiple_digit_scenes",
    "pascal_voc",
    "read_ahead",
    "read_image",
    "read_label_map",
    "read_templates",
    "segmented_digit_scenes",
    "sensible_workers",
    "single_digit_scenes",
    "split_folders",
]
