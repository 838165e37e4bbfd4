"""PyTorch checkpoints to the models of this zoo, strictly: no tensor is left over or made up."""

from convert.errors import ConversionError
from convert.loading import load_pretrained
from convert.sources import fetch

__all__ = ["ConversionError", "fetch", "load_pretrained"]
