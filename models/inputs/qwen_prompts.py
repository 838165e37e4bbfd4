"""Texts, images and videos to what a Qwen3-VL takes: tokens with room for features, and positions.

Shape letters: N tokens of a prompt, b pairs of frames.
"""

import math

import numpy as np

from ..qwen_vl import QwenPrompts, QwenVLConfig
from .prompts import Video, check_length, check_prompts, key_mask, padded, stretched
from .qwen_images import FRAMES, frame_pairs

_START, _VIDEO, _END = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"


def timed(text, seconds) -> str:
    """The text with each video's mark once for every pair of its frames, behind their time.

    What chat templates write around a mark stays around them all, as in transformers since 5.

    Args:
      text: with `<|video_pad|>` for each video.
      seconds: for each video the times of its frames.

    Raises:
      ValueError: times for another number of videos, or of no frame.
    """
    if (found := text.count(_VIDEO)) != len(seconds):
        raise ValueError(f"the text has {found} videos, but times of {len(seconds)} are given")
    before, *behind = text.split(_VIDEO)
    return before + "".join(_pairs(times) + part for times, part in zip(seconds, behind))


def _pairs(times):
    """The marks of a video whose frames have these times."""
    times = list(times)
    if not times:
        raise ValueError("a video has no frames")
    times += times[-1:] * (len(times) % FRAMES)
    means = (sum(times[i : i + FRAMES]) / FRAMES for i in range(0, len(times), FRAMES))
    return "".join(f"<{mean:.1f} seconds>{_START}{_VIDEO}{_END}" for mean in means)


def make_prompts(
    token_ids, images, *, config: QwenVLConfig, preprocessor, video_preprocessor=None, length=None
) -> QwenPrompts:
    """A batch for `QwenVL.embed` and `qwen_vl.generate`.

    Args:
      token_ids: for each prompt its tokens, among which one image token stands for each image, and
        one video token for each pair of frames of a video, as `timed` writes them.
      images: for each prompt its images in that order, as `Preprocessor` takes them, or
        `prompts.Video`s.
      config, preprocessor, length: as in `prompts.make_prompts`, with its errors.
      video_preprocessor: that of videos, of `video_preprocessing.load_video_preprocessor`; by
        default as of images.
    """
    check_prompts(token_ids, images, config, marks=_marks, videos="pairs of frames of videos")

    def look_at(image):
        of_video = isinstance(image, Video) and video_preprocessor is not None
        return look(image, config, video_preprocessor if of_video else preprocessor)

    looked = [[look_at(image) for image in of_prompt] for of_prompt in images]
    return lay_out(token_ids, looked, config=config, length=length)


def _marks(image, config):
    """The tokens that stand for an image or a video."""
    if isinstance(image, Video):
        return [config.video_token_id] * math.ceil(len(image.frames) / FRAMES)
    return [config.image_token_id]


def look(image, config: QwenVLConfig, preprocessor) -> np.ndarray:
    """What the tower reads of an image `[1, height, width, 3]`, or of a video
    `[b, 2, height, width, 3]`.

    Raises:
      ValueError: an image that cannot be read, frames of several sizes, or a preprocessor for
        another size of patches than the model's.
    """
    multiple = config.vision.patch_size * config.vision.merge_size
    if (budget := preprocessor.budget) is not None and budget.multiple != multiple:
        raise ValueError(
            f"the preprocessing gives sides that are multiples of {budget.multiple} pixels, but "
            f"the model takes multiples of {multiple}: not its own"
        )
    if not isinstance(image, Video):
        return preprocessor(image)[None]
    frames = [preprocessor.upright(frame) for frame in image.frames]
    if len(sizes := {frame.size[::-1] for frame in frames}) > 1:
        raise ValueError(f"a video has frames of several sizes: {sorted(sizes)}")
    (size,) = sizes
    if budget is not None:
        size = budget.size(*size, frames=len(frames))
    pixels = np.stack([stretched(frame, preprocessor, size) for frame in frames])
    return frame_pairs(preprocessor.normalised(pixels))


def lay_out(token_ids, looked, *, config: QwenVLConfig, length=None) -> QwenPrompts:
    """A batch as `make_prompts` makes it, of images that were looked at.

    Args:
      token_ids, config, length: as there.
      looked: for each prompt what `look` gave for each of its images.

    Raises:
      ValueError: more tokens than the model has positions, or than `length`.
    """
    rows = []
    for number, (ids, of_prompt) in enumerate(zip(token_ids, looked, strict=True)):
        grids = [merged_grid(x, config) for x in of_prompt for _ in x]
        rows.append(_expanded(ids, grids, config))
        check_length(number, len(rows[-1][0]), len(ids) - len(grids), config)
    tokens, positions, is_image = padded(rows, length)
    images = tuple(image for of_prompt in looked for image in of_prompt)
    mask = key_mask(rows, tokens.shape[1])
    return QwenPrompts(tokens, mask, positions, is_image, images)


def merged_grid(images, config: QwenVLConfig) -> tuple[int, int]:
    """Tokens down and across of each of these images, or pairs of frames."""
    cut = config.vision.patch_size * config.vision.merge_size
    return images.shape[-3] // cut, images.shape[-2] // cut


def _expanded(ids, grids, config):
    """A prompt's tokens `[N]`, positions `[N, 3]` and which are of images, bool `[N]`.

    Text goes on at one position after the other. All tokens of an image have the time at which it
    begins; from there their rows and columns count, and text goes on behind the longer side.
    """
    marks, grids = (config.image_token_id, config.video_token_id), iter(grids)
    text, parts, start = np.zeros((1, 3), np.int32), [], 0
    for token in ids:
        places, step = text, 1
        if token in marks:
            down, across = next(grids)
            rows_and_columns = np.indices((down, across), np.int32).reshape(2, -1).T
            places, step = np.pad(rows_and_columns, [(0, 0), (1, 0)]), max(down, across)
        parts.append(start + places)
        start += step
    counts = [len(part) for part in parts]
    tokens = np.repeat(np.asarray(ids, np.int32), counts)
    is_image = np.repeat([token in marks for token in ids], counts)
    return tokens, np.concatenate(parts).astype(np.int32), is_image
