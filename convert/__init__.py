"""PyTorch checkpoints to the models of this zoo, strictly: no tensor is left over or made up."""

from convert.errors import ConversionError
from convert.loading import load_pretrained
from convert.sources import fetch
from convert.writing import converted, load

__all__ = ["ConversionError", "converted", "fetch", "load", "load_pretrained"]
