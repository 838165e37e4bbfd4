"""A model with what it needs to read images and texts."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from flax import nnx

import convert
import models
from models.preprocessing import Preprocessor, load_preprocessor
from models.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model, its tokenizer and its preprocessing.

    Attributes:
      name: what to call it in a report.
      model: the model, with the attention to evaluate.
      tokenize: list of texts to int32 `[B, T]`.
      preprocess: an image to float32 `[height, width, 3]`.
    """

    name: str
    model: nnx.Module
    tokenize: Callable
    preprocess: Preprocessor

    def with_attention(self, fna) -> "Pretrained":
        """The same with the attention that `models.with_attention` sets."""
        return dataclasses.replace(self, model=models.with_attention(self.model, fna))


@functools.lru_cache(maxsize=1)
def open_pretrained(source, revision=None) -> Pretrained:
    """The model at `source`: a directory of `models.save`, PyTorch files, or a hub id.

    Raises:
      FileNotFoundError, ValueError: nothing usable there, or tokenizer or preprocessing missing.
    """
    path = pathlib.Path(source)
    if (path / "model.json").is_file():
        model = models.load(path)
    else:
        path = convert.fetch(source, revision)
        model = convert.load_pretrained(path)
        path = path if path.is_dir() else path.parent
    return Pretrained(
        name=str(source),
        model=model,
        tokenize=load_tokenizer(path, context_length=model.config.text.context_length),
        preprocess=load_preprocessor(path),
    )
