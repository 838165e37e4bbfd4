"""Texts and images to what a LLaVA takes: tiles, and tokens with room for their features.

Shape letters: N tokens of a prompt, T tiles, S pixels along the side of a tile, F features of a
tile, K features that a token is the weighted sum of.
"""

import dataclasses

import numpy as np

from ..configs import image_shape
from ..llava import LLaVAConfig, Prompts
from .preprocessor import Preprocessor
from .tiles import END, Packing, fitted_size, margins, plain_packing


@dataclasses.dataclass(frozen=True)
class Video:
    """Frames of a video in their order, each an image as `Preprocessor` takes it."""

    frames: tuple

    def __post_init__(self):
        if not len(self.frames):
            raise ValueError("a video has no frames")


def make_prompts(token_ids, images, *, config: LLaVAConfig, preprocessor, length=None) -> Prompts:
    """A batch for `LLaVA.embed` and `llava.generate`.

    Args:
      token_ids: for each prompt its tokens, among which one image token stands for each image.
      images: for each prompt its images in that order, as `Preprocessor` takes them, or a `Video`
        where a video token stands.
      config: of the model.
      preprocessor: the checkpoint's, of `preprocessing.load_preprocessor`.
      length: to how many tokens prompts are padded, so that many batches have one shape; by default
        as many as the longest has.

    Raises:
      ValueError: image tokens and images that do not match, tokens that the model does not have,
        more of them than it has positions, no or an empty prompt, or images that cannot be read.
    """
    check_prompts(token_ids, images, config, marks=_marks, videos="videos")

    def look_at(image, of_prompt):
        alone = sum(not isinstance(x, Video) for x in of_prompt) == 1
        return look(image, config, preprocessor, alone=alone)

    looked = [[look_at(image, of_prompt) for image in of_prompt] for of_prompt in images]
    return lay_out(token_ids, looked, config=config, length=length)


def lay_out(token_ids, looked, *, config: LLaVAConfig, length=None) -> Prompts:
    """A batch as `make_prompts` makes it, of images that were looked at.

    Args:
      token_ids, config, length: as there.
      looked: for each prompt what `look` gave for each of its images.

    Raises:
      ValueError: more tokens than the model has positions, or than `length`.
    """
    rows, tiles, num_tiles = [], [], 0
    for number, (ids, of_prompt) in enumerate(zip(token_ids, looked, strict=True)):
        packings = []
        for pixels, packing in of_prompt:
            packings.append(_behind(packing, num_tiles * config.num_features))
            tiles.append(pixels)
            num_tiles += len(pixels)
        rows.append(_expanded(ids, packings, config))
        check_length(number, len(rows[-1][0]), len(ids) - len(of_prompt), config)
    side, across = image_shape(config.vision)
    tiles = np.concatenate([np.zeros((0, side, across, 3), np.float32), *tiles])
    tokens, index, weight = padded(rows, length)
    mask = key_mask(rows, tokens.shape[1])
    return Prompts(tokens, mask, tiles, index, weight)


def look(image, config: LLaVAConfig, preprocessor, *, alone=True) -> tuple[np.ndarray, Packing]:
    """The tiles float32 `[T, S, S, 3]` of an image or a `Video`, and the packing of their features.

    Args:
      image, config, preprocessor: as in `make_prompts`.
      alone: whether it is the only image of its prompt.

    Raises:
      ValueError: an image that cannot be read, or a preprocessor for another size than the model's.
    """
    tiling = config.tiling
    if isinstance(image, Video):
        frames = [preprocessor.upright(frame) for frame in image.frames]
        side = image_shape(config.vision)
        tiles = np.stack([stretched(frame, preprocessor, side) for frame in frames])
        return preprocessor.normalised(tiles), tiling.video_packing(len(frames))
    image = preprocessor.upright(image)
    if tiling is not None and (alone or not config.tile_one_only):
        tiles = _cut(image, preprocessor, tiling)
        packing = tiling.packing(image.size[::-1])
    else:
        whole = preprocessor
        if tiling is not None:
            whole = dataclasses.replace(preprocessor, squared=True)
        tiles = whole.pixels(image)[None]
        packing = tiling.base_packing() if tiling else plain_packing(config.num_features)
    if tiles.shape[1:3] != image_shape(config.vision):
        raise ValueError(
            f"the preprocessing gives images of {list(tiles.shape[1:3])} pixels, but the model "
            f"takes {list(image_shape(config.vision))}: not its own"
        )
    return preprocessor.normalised(tiles), packing


def _cut(image, preprocessor: Preprocessor, tiling):
    """All of an upright image squeezed to a tile, then its tiles row by row, in 0..255."""
    side, size = tiling.side, image.size[::-1]
    resolution = tiling.resolution(size)
    height, width = fitted = fitted_size(size, resolution)
    top, left = margins(fitted, resolution)
    pixels = np.zeros((*resolution, 3), np.float32)
    pixels[top : top + height, left : left + width] = stretched(image, preprocessor, fitted)
    rows, columns = (length // side for length in resolution)
    tiles = pixels.reshape(rows, side, columns, side, 3).swapaxes(1, 2)  # [rows, columns, S, S, 3]
    base = stretched(image, preprocessor, (side, side))
    return np.concatenate([base[None], tiles.reshape(-1, side, side, 3)])


def stretched(image, preprocessor, size):
    """An upright image resized to height and width, in 0..255."""
    fill = dict(resize=size, crop=None, fit="fill", squared=False, budget=None)
    return dataclasses.replace(preprocessor, **fill).pixels(image)


def _behind(packing, num_features) -> Packing:
    """The same of tiles that have so many features of others in front."""
    index = np.where(packing.index == END, END, packing.index + num_features)
    return packing._replace(index=index)


def _expanded(ids, packings, config):
    """A prompt's tokens `[N]`, index and weight `[N, K]`, each image token as often as packed."""
    terms, images = config.num_terms, iter(packings)
    text = Packing(np.zeros((1, terms), np.int32), np.zeros((1, terms), np.float32))
    marks = (config.image_token_id, config.video_token_id)
    parts = [next(images).widened(terms) if token in marks else text for token in ids]
    tokens = np.repeat(np.asarray(ids, np.int32), [len(part.index) for part in parts])
    return tokens, *map(np.concatenate, zip(*parts, strict=True))


def padded(rows, length):
    """Each of the arrays `[n, …]` that rows, the prompts, have in common as one, `[B, N, …]`.

    With zeros on the left.

    Args:
      rows: of arrays as long as the prompt's tokens.
      length: N; None for that of the longest.

    Raises:
      ValueError: a longer prompt.
    """
    longest = max(len(first) for first, *_ in rows)
    length = longest if length is None else length
    if longest > length:
        raise ValueError(f"a prompt of {longest} tokens cannot be padded to {length}")
    pad = lambda x: np.pad(x, [(length - len(x), 0)] + [(0, 0)] * (x.ndim - 1))
    return [np.stack([pad(x) for x in arrays]) for arrays in zip(*rows, strict=True)]


def key_mask(rows, length):
    """bool `[B, length]`, False on the padding of what `padded` made of rows."""
    lengths = np.array([len(first) for first, *_ in rows])
    return np.arange(length) >= length - lengths[:, None]


def _marks(image, config):
    """The token that stands for an image or a video."""
    return [config.video_token_id if isinstance(image, Video) else config.image_token_id]


def check_prompts(token_ids, images, config, *, marks, videos):
    """Raises ValueError for prompts that are none, empty, or do not fit the images or the model.

    Args:
      token_ids, images, config: as in `make_prompts`.
      marks: a function of an image or a video, and the config, that gives the tokens that stand
        for it; None is one that the model does not have.
      videos: what video tokens stand for, one each.
    """
    if not len(token_ids):
        raise ValueError("there are no prompts")
    if len(token_ids) != len(images):
        raise ValueError(f"{len(token_ids)} prompts, but images for {len(images)} of them")
    for number, (ids, of_prompt) in enumerate(zip(token_ids, images)):
        wanted = [mark for image in of_prompt for mark in marks(image, config)]
        _check_tokens(number, ids, wanted, config, videos)


def _check_tokens(number, ids, marks, config, videos):
    """Of one prompt, whose images and videos have these marks, in their order."""
    if None in marks:
        raise ValueError(
            f"prompt {number} has a video, and this model has no token for videos: give its frames "
            "as images"
        )
    if not len(ids):
        raise ValueError(f"prompt {number} is empty")
    for token in ids:
        if not 0 <= token < config.decoder.vocab_size:
            raise ValueError(
                f"prompt {number} has the token {token}, but the model knows 0 to "
                f"{config.decoder.vocab_size - 1}: not its tokenizer"
            )
    image, video = config.image_token_id, config.video_token_id
    found = [token for token in ids if token in (image, video)]
    for token, named, things in ((image, "image", "images"), (video, "video", videos)):
        if found.count(token) != marks.count(token):
            raise ValueError(
                f"prompt {number} has {found.count(token)} {named} tokens ({token}), but "
                f"{marks.count(token)} {things}: write one for each, where it belongs"
            )
    if found != marks:
        raise ValueError(f"prompt {number} names images and videos in another order than given")


def check_length(number, num_tokens, num_words, config):
    """Raises ValueError for a prompt of more tokens than the model has positions."""
    if num_tokens > config.decoder.max_positions:
        raise ValueError(
            f"prompt {number} has {num_tokens} tokens, {num_tokens - num_words} of them of its "
            f"images, but the model has positions for {config.decoder.max_positions}: give fewer "
            "or smaller images, or less text"
        )
