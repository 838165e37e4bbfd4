"""The preprocessing of a checkpoint's videos from the file that it was published with."""

import pathlib

from .preprocessing import from_preprocessor, read_with
from .preprocessor import Preprocessor
from .qwen_images import FRAMES

_FILES = ("processor_config.json", "video_preprocessor_config.json")
_CLASS = "Qwen3VLVideoProcessor"
# What that class of transformers does where the file says nothing; which frames to take is the
# caller's.
_DEFAULTS = {
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "size": {"shortest_edge": 128 * 32 * 32, "longest_edge": 32 * 32 * 768},
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": FRAMES,
}
_OF_SAMPLING = ("video_processor_type", "do_sample_frames")


def load_video_preprocessor(path) -> Preprocessor:
    """The preprocessing of a video's frames, whose budget of pixels is that of all of them.

    By the first of `processor_config.json` and `video_preprocessor_config.json` that speaks of
    videos. The further limit of a single frame, which `cap_pixels_per_frame=True` of transformers
    sets, is not kept.

    Args:
      path: the checkpoint's directory, or its file of weights.

    Raises:
      FileNotFoundError: neither file is there, or none speaks of videos.
      ValueError: a file that is damaged or asks for what is not supported.
    """
    path = pathlib.Path(path)
    folder = path.parent if path.is_file() else path
    for file in (folder / name for name in _FILES):
        if file.is_file() and (preprocessor := read_with(_of_videos, file)) is not None:
            return preprocessor
    raise FileNotFoundError(
        f"{folder} says nothing of videos in any of {', '.join(_FILES)}: copy the one that was "
        "published with the checkpoint there"
    )


def _of_videos(values, folder):
    """As of images, which they are but for the sizes that a class leaves out."""
    if "video_processor_type" not in values:
        values = values.get("video_processor")
    if values is None:
        return None
    if (found := values["video_processor_type"]) != _CLASS:
        raise ValueError(f"video_processor_type {found!r} is not supported")
    values = {name: value for name, value in values.items() if name not in _OF_SAMPLING}
    of_images = {"image_processor_type": "Qwen2VLImageProcessor"}
    return from_preprocessor(_DEFAULTS | values | of_images, folder)
