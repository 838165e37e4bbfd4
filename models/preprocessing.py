"""Images to model input by the `preprocessor_config.json` that lies beside a checkpoint."""

import dataclasses
import json
import math
import pathlib

import numpy as np
from PIL import Image, ImageOps

_SIDES = ("height", "width")


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """Resize, crop, scale to 0..1, normalise: what the checkpoint was trained with.

    Attributes:
      resize: side in pixels, of the shorter side or of a square; None keeps the size.
      keep_aspect: whether `resize` is the shorter side's.
      crop: side of the centre crop, or None.
      mean, std: per channel, of values in 0..1.
      resample: Pillow's filter number; 3 is bicubic.
    """

    resize: int | None
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 3
    keep_aspect: bool = True

    def __call__(self, image):
        """float32 `[height, width, 3]` of a Pillow image of any mode, or a uint8 or 0..1 array."""
        if isinstance(image, np.ndarray):
            image = _image_of(image)
        image = ImageOps.exif_transpose(image).convert("RGB")
        if self.resize:
            image = image.resize(self._size(image.size), Image.Resampling(self.resample))
        pixels = np.asarray(image, np.float32) / 255
        if self.crop:
            pixels = _centre_crop(pixels, self.crop)
        return (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def _size(self, size):
        if not self.keep_aspect:
            return self.resize, self.resize
        shorter = min(size)
        return tuple(int(self.resize * side / shorter) for side in size)


def load_preprocessor(path) -> Preprocessor:
    """The preprocessor of a checkpoint directory.

    Raises:
      FileNotFoundError: no `preprocessor_config.json` there.
      ValueError: a file that is damaged or asks for what is not supported.
    """
    file = pathlib.Path(path) / "preprocessor_config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: copy it beside the checkpoint")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        _refuse_unsupported(values)
        return Preprocessor(
            resize=_side(values.get("size")) if values.get("do_resize", True) else None,
            crop=_side(values.get("crop_size")) if values.get("do_center_crop", False) else None,
            mean=_channels(values["image_mean"]),
            std=_channels(values["image_std"]),
            resample=int(values.get("resample", 3)),
            keep_aspect=not isinstance(values.get("size"), dict) or "height" not in values["size"],
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used: {error!r}") from None


def _refuse_unsupported(values):
    if not values.get("do_rescale", True) or not values.get("do_normalize", True):
        raise ValueError("do_rescale and do_normalize must be on")
    if min(values["image_std"]) <= 0:
        raise ValueError(f"image_std must be positive, got {values['image_std']}")
    if not math.isclose(values.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        raise ValueError(f"rescale_factor must be 1/255, got {values['rescale_factor']}")


def _side(size):
    """The side in pixels of Hugging Face's size: an int, a shortest edge, or a square."""
    if isinstance(size, dict):
        sides = {size["shortest_edge"]} if "shortest_edge" in size else {*map(size.get, _SIDES)}
        if len(sides) != 1:
            raise ValueError(f"only square sizes are supported, got {size}")
        (size,) = sides
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"a size must be a positive integer, got {size!r}")
    return size


def _channels(values):
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"expected a number for each of three channels, got {values}")
    return tuple(float(value) for value in values)


def _image_of(pixels):
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN, too
            raise ValueError(
                f"a float image must lie in 0..1, got {pixels.min()} to {pixels.max()}"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 or floats in 0..1, got {pixels.dtype}")
    return Image.fromarray(pixels)


def _centre_crop(pixels, side):
    """`[side, side, 3]` from the middle; black where the image is smaller."""
    height, width = pixels.shape[:2]
    top, left = (height - side) // 2, (width - side) // 2
    out = np.zeros((side, side, 3), np.float32)
    inner = pixels[max(top, 0) : max(top, 0) + side, max(left, 0) : max(left, 0) + side]
    y, x = max(-top, 0), max(-left, 0)
    out[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return out
