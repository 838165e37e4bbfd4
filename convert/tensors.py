"""A tensor of a checkpoint's file, not read before it is needed."""

import dataclasses
from collections.abc import Callable

import numpy as np

from convert.errors import ConversionError


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: what its header says, and how to read it.

    Attributes:
      shape: in the file.
      dtype: a numpy name for floats of 32 and 16 bits, otherwise the file's own word.
      read: the array, of this shape and dtype.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def shape_of(tensors, name, axes) -> tuple[int, ...]:
    """A tensor's shape; raises ConversionError if it is missing or not of this many axes."""
    if name not in tensors or len(tensors[name].shape) != axes:
        raise ConversionError(f"{name} is missing, or not of {axes} axes")
    return tensors[name].shape
