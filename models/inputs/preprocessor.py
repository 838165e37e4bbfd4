"""Images to model input: resize, crop, scale to 0..1, normalise."""

import dataclasses
import struct

import numpy as np
from PIL import ExifTags, Image

from .naflex_images import PatchBudget
from .qwen_images import PixelBudget


@dataclasses.dataclass(frozen=True)
class Preprocessor:
    """What a checkpoint's images went through in the library that it comes from.

    Attributes:
      resize: height and width to resize to, by `fit`; None keeps the size.
      crop: height and width of the centre crop, black where the image is smaller; or None.
      mean, std: per channel, of values in 0..1.
      resample: Pillow's filter number; 3 is bicubic.
      fit: "fill" stretches to `resize`, "contain" fits the image into it, "cover" makes the shorter
        side that of a square.
      library: whose order and rounding to follow: "transformers", "open_clip" or "timm".
      levels: whether resizing gives whole levels in 0..255; for "transformers" only.
      on_white: whether transparent pixels show white, rather than the colour stored for them.
      squared: whether the image is first put into the middle of a square of the mean colour.
      budget: gives each image its own size to be stretched to; then `resize` is None.
    """

    resize: tuple[int, int] | None
    crop: tuple[int, int] | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = 3
    fit: str = "cover"
    library: str = "transformers"
    levels: bool = True
    on_white: bool = False
    squared: bool = False
    budget: PixelBudget | PatchBudget | None = None

    def __call__(self, image):
        """float32 `[height, width, 3]` of a Pillow image of any mode, or of an array.

        Args:
          image: if an array, uint8 or floats in 0..1, `[height, width]` or `[height, width, 3]`.

        Raises:
          ValueError: an array of another shape, type or range, too narrow an image for `fit`, or
            numbers that say nothing of what is white.
        """
        return self.normalised(self.pixels(self.upright(image)))

    def video(self, frames):
        """float32 `[F, height, width, 3]` of frames, each as an image; errors as in a call.

        Args:
          frames: an array `[F, height, width, 3]`, or images of one size.

        Raises:
          ValueError: no frames, or an array of another shape.
        """
        if isinstance(frames, np.ndarray) and frames.ndim != 4:
            raise ValueError(
                f"an array of a video must be [F, height, width, 3], got {list(frames.shape)}"
            )
        if not len(frames):
            raise ValueError("a video needs at least one frame, got none")
        return np.stack([self(frame) for frame in frames])

    def upright(self, image):
        """The Pillow image that is shown, of 8 bits; arguments and errors as in a call."""
        if isinstance(image, np.ndarray):
            image = _image_of(image)
        if (turn := turn_of(image)) is not None:
            image = image.transpose(turn)
        image = _in_8_bits(image)
        if self.on_white and image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        # open_clip resizes in the image's own mode: palettes by nearest neighbour, RGBA by alpha.
        if self.library != "open_clip" and image.mode != "RGB":
            image = image.convert("RGB")
        return image

    def pixels(self, image):
        """float32 `[height, width, 3]` in 0..255 of an upright image, resized and cropped."""
        return self._resized_and_cropped(self._squared(image) if self.squared else image)

    def normalised(self, pixels):
        """What the model takes, of values in 0..255."""
        return (pixels / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def at_size(self, size: int) -> "Preprocessor":
        """The same for square images of `size` pixels; resizing grows with the crop.

        Raises:
          ValueError: `size` below 1, or preprocessing that does not end in one size.
        """
        if size < 1:
            raise ValueError(f"images of {size} pixels: the size must be at least 1")
        self.side()
        if self.crop is None:
            return dataclasses.replace(self, resize=(size, size))
        resize = self.resize
        if resize is not None:
            resize = tuple(round(side * size / self.crop[0]) for side in resize)
        return dataclasses.replace(self, resize=resize, crop=(size, size))

    def side(self) -> int:
        """The height in pixels of what it gives.

        Raises:
          ValueError: preprocessing that does not end in one size.
        """
        if self.crop is None and (self.resize is None or self.fit != "fill"):
            raise ValueError(
                "this checkpoint's preprocessing leaves each image its own size, so there is no "
                "size to set"
            )
        return (self.crop or self.resize)[0]

    def _squared(self, image):
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in self.mean))
        square.paste(image, tuple((side - length) // 2 for length in image.size))
        return square

    def _resized_and_cropped(self, image):
        size = self._size(*image.size) if self.resize or self.budget else image.size
        if self.library == "transformers" and size != image.size:
            return self._resized_as_floats(image, size)
        image = image.resize(size, self.resample) if size != image.size else image
        return np.asarray(self._crop(image).convert("RGB"), np.float32)

    def _resized_as_floats(self, image, size):
        """Within a level of each of transformers' two ways, which differ by two from each other.

        Pillow and torchvision resize the rows, then the columns, and round to levels after each.
        Their weights differ in the last digits, so their roundings do. Limited to 0..255 after
        each, but rounded only at the end, the result is less than 1.5 levels from both before that
        rounding, and as all are whole numbers at most 1 after it.
        """
        channels = []
        for channel in image.split():
            channel = channel.convert("F").resize((size[0], image.height), self.resample)
            if self.levels:
                channel = Image.fromarray(np.clip(channel, 0, 255))
            channels.append(self._crop(channel.resize(size, self.resample)))
        pixels = np.stack(channels, axis=-1)
        return np.clip(np.rint(pixels), 0, 255) if self.levels else pixels

    def _size(self, width, height):
        """Width and height after resizing, rounded as all three libraries do."""
        if self.budget is not None:
            return self.budget.size(height, width)[::-1]
        to_height, to_width = self.resize
        if self.fit == "fill":
            return to_width, to_height
        if self.fit == "contain":
            scale = min(to_width / width, to_height / height)
            return round(scale * width), round(scale * height)
        shorter = min(width, height)
        return int(to_width * width / shorter), int(to_height * height / shorter)

    def _crop(self, image):
        if not self.crop:
            return image
        height, width = self.crop
        left, top = self._offset(image.width - width), self._offset(image.height - height)
        return image.crop((left, top, left + width, top + height))

    def _offset(self, excess):
        """Half of the excess; where it is odd, the libraries put the pixel at different ends."""
        return (
            int(excess / 2) if self.library == "transformers" or excess < 0 else round(excess / 2)
        )


_TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = tuple(turn for number, turn in _TURNS.items() if number > 4)  # width becomes height
_SHORT = 3  # EXIF's type of an orientation


def turn_of(image):
    """Pillow's transposition that shows the image upright, by its EXIF; None if it already is.

    Of the EXIF nothing but the orientation is used, and nothing is written: other entries may be of
    wrong types or out of range. Without a readable orientation the image is taken as it is.
    """
    if image.format == "TIFF":  # which Pillow turns as it loads it, and its size as it opens it
        return None
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many types on damaged EXIF
        orientation = None
    if orientation is None:
        orientation = _stored_orientation(image.info.get("exif", b""))
    return _TURNS.get(orientation)


def _stored_orientation(exif):
    """That of the first directory in bytes of EXIF; None if there is none.

    Pillow gives up a directory at the first entry that points far out of the file.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if (tag, kind, number) == (ExifTags.Base.Orientation, _SHORT, 1):
                return value
    except struct.error:  # no byte order, or past the end
        pass
    return None


def _in_8_bits(image):
    """The image with the upper 8 bits where it is grey of 16, as Pillow reads colours of 16 bits.

    The original processors make everything above 255 white there, which leaves no picture.
    """
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    lowest, highest = image.getextrema() if image.mode == "I" else (0, 255)
    if image.mode == "F" or lowest < 0 or highest > 255:
        raise ValueError(f"numbers of mode {image.mode}; save it with 8 or 16 bits per channel")
    return image


def _image_of(pixels):
    if pixels.shape[2:] not in ((), (3,)) or pixels.ndim < 2 or not pixels.size:
        raise ValueError(
            "an image array must be [height, width] or [height, width, 3] and not empty, "
            f"got {list(pixels.shape)}"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # false for NaN, too
            raise ValueError(
                f"a float image must lie in 0..1, got {pixels.min()} to {pixels.max()}"
            )
        pixels = np.round(pixels * 255).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ValueError(f"an image array must be uint8 or floats in 0..1, got {pixels.dtype}")
    return Image.fromarray(pixels)
