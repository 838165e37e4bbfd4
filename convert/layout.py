"""What the converters know of one way in which a family's checkpoints are published."""

import dataclasses
import pathlib
import typing
from collections.abc import Callable, Mapping

from convert.guesses import NOTHING, Given, Guess
from convert.table import Table
from convert.tensors import Tensor


class Source(typing.NamedTuple):
    """A checkpoint as found: its file of weights, its config if there is one, its tensors.

    And what a person says of it where these do not.
    """

    file: pathlib.Path
    config: dict | None
    tensors: Mapping[str, Tensor]
    given: Given = NOTHING


class Parsed(typing.NamedTuple):
    """A model's config, the fields of the checkpoint's that nobody knows, and what was guessed."""

    config: typing.Any
    unknown_fields: list[str]
    guesses: tuple[Guess, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which checkpoints of a family are published.

    Attributes:
      family: one of `models.registry.FAMILIES`.
      library: whose files these are: "transformers", "timm", "open_clip", "vision_transformer",
        "big_vision", or "original" of their authors'.
      has_keys: whether names of tensors are; they tell the family where there is no config.
      parse: the config of the model; raises ConversionError. The source's may be None only if
        `needs_config` is false.
      tables: the key tables that such files may have.
      describes: whether a config, as read from JSON, is of this layout; of one without, none is.
      needs_config: whether the tensors alone leave something open.
      refused: relatives by their `model_type` that are not supported, and why.
    """

    family: str
    library: str
    has_keys: Callable[[Mapping], bool]
    parse: Callable[[Source], Parsed]
    tables: Callable[[typing.Any], tuple[Table, ...]]
    describes: Callable[[Mapping], bool] = lambda values: False
    needs_config: bool = True
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __str__(self):
        return f"{self.family} ({self.library})"


def of_model_type(*model_types):
    """A `Layout.describes` for configs of transformers."""
    return lambda values: values.get("model_type") in model_types
