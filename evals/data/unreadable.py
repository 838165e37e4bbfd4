"""Images that do not open: named, counted, and how many of them a run puts up with."""

import dataclasses
import os

import numpy as np
from PIL import Image

from evals.data.notices import say

MOST_UNREADABLE = 0.01  # of the images; with more a pass fails
_NAMED = 3


class UnreadableImage(ValueError):
    """An image that does not open: its path in `file`, the cause in `reason`."""

    def __init__(self, file, reason):
        super().__init__(file, reason)  # as pickle calls it
        self.file, self.reason = file, reason

    def __str__(self):
        return f"{self.file} cannot be read as an image: {self.reason}"


def read_image(item, preprocess):
    """The preprocessed image.

    Args:
      item: a path, an array, or what has an `open_image()` that gives a Pillow image.
      preprocess: a function of a Pillow image or an array.

    Raises:
      UnreadableImage: a file that does not open, or that `preprocess` refuses.
    """
    if isinstance(item, np.ndarray):
        return preprocess(item)
    try:
        if hasattr(item, "open_image"):
            return preprocess(item.open_image())
        if os.path.exists(item) and not os.path.isfile(item):  # opening a pipe would never end
            raise ValueError("it is no file")
        with Image.open(item) as image:
            return preprocess(image)
    except Exception as error:  # Pillow raises many types on damaged and hostile files
        reason = str(error).replace(f" {str(item)!r}", "")  # as Pillow repeats it
        raise UnreadableImage(str(item), reason or type(error).__name__) from None


def checked_number(number, total) -> int:
    """The number of `total` images that do not open; raises ValueError if it is too large."""
    if number > int(MOST_UNREADABLE * total):
        raise ValueError(
            f"{number} of {total} images do not open: more than the {MOST_UNREADABLE:.0%} that a "
            "run leaves out; repair or remove them"
        )
    return number


@dataclasses.dataclass
class Tolerance:
    """Counts the images of a pass that do not open.

    Attributes:
      total: images of the data.
      errors: those of the images met so far.
      most: how many there may be.
    """

    total: int
    errors: list[UnreadableImage] = dataclasses.field(default_factory=list)
    most: float | None = None

    def __post_init__(self):
        if self.most is None:
            self.most = int(MOST_UNREADABLE * self.total)

    def add(self, errors) -> None:
        """Counts further images; raises ValueError as soon as there are too many."""
        self.errors += errors
        if len(self.errors) > self.most:
            raise ValueError(
                f"{self._named()}: more than the {MOST_UNREADABLE:.0%} that a run leaves out; "
                "repair or remove them"
            )

    def close(self) -> None:
        """Names them on stderr."""
        if self.errors:
            say(f"{self._named()}; left out")

    def _named(self):
        shown = "; ".join(f"{error.file}: {error.reason}" for error in self.errors[:_NAMED])
        more = f"; and {len(self.errors) - _NAMED} more" if len(self.errors) > _NAMED else ""
        return f"{len(self.errors)} of {self.total} images do not open ({shown}{more})"
