"""Which families can be converted: their config parsers and key tables."""

import dataclasses
import typing

from convert import clip
from convert.errors import ConversionError, show
from convert.table import Table


@dataclasses.dataclass(frozen=True)
class Family:
    """How one of `models.registry.FAMILIES` is read.

    Attributes:
      model_type: the word for it in `config.json`.
      refused: relatives by their `model_type` that are not supported, and why.
      parse_config: `config.json` to the family's config.
      tables: the key layouts of files with such a config.
    """

    model_type: str
    refused: dict[str, str]
    parse_config: typing.Callable[[dict], typing.Any]
    tables: typing.Callable[[typing.Any], tuple[Table, ...]]


FAMILIES = {"clip": Family(clip.MODEL_TYPE, clip.REFUSED, clip.parse_config, clip.tables)}


def family_of(values: dict) -> str:
    """The name of the family that a `config.json` describes.

    Raises:
      ConversionError: none of the families, by name.
    """
    model_type = values.get("model_type")
    for name, family in FAMILIES.items():
        if model_type == family.model_type:
            return name
        if isinstance(model_type, str) and model_type in family.refused:
            raise ConversionError(
                f"model_type {model_type!r} is not supported: {family.refused[model_type]}"
            )
    supported = ", ".join(repr(family.model_type) for family in FAMILIES.values())
    raise ConversionError(f"model_type must be one of {supported}, got {show(model_type)}")
