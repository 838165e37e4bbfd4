"""Typed access to the fields of a `config.json`, for the parsers of the families."""

import dataclasses

from convert.errors import ConversionError, show

# A file may claim anything. No model exists beyond these; larger sizes would overflow in the
# arithmetic of shapes, and flax needs minutes to build hundreds of blocks.
_LARGEST_SIZE = 2**20
_LARGEST_DEPTH = 128


@dataclasses.dataclass(frozen=True)
class Fields:
    """An object of a `config.json`; its fields by type, with ConversionError for all others.

    Attributes:
      name: of the object, for messages.
      values: as read.
      defaults: of the fields that the file may leave out.
    """

    name: str
    values: dict
    defaults: dict

    def size(self, field) -> int:
        """An integer from 1 to a million."""
        return self.integer(field, least=1, most=_LARGEST_SIZE)

    def depth(self, field) -> int:
        """A number of blocks, from 1 to 128."""
        return self.integer(field, least=1, most=_LARGEST_DEPTH)

    def integer(self, field, *, least=0, most=2**31 - 1) -> int:
        """An integer in `least..most`, by default what an int32 token id can be."""
        value = self._get(field)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._error(field, f"an integer in {least}..{most}")
        return value

    def epsilon(self, field) -> float:
        """A number between 0 and 1."""
        value = self._get(field)
        if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 1:
            raise self._error(field, "a number between 0 and 1")
        return value

    def choice(self, field, choices) -> str:
        """One of the given strings."""
        value = self._get(field)
        if not isinstance(value, str) or value not in choices:
            raise self._error(field, f"one of {', '.join(choices)}")
        return value

    def _get(self, field):
        if field not in self.values and field not in self.defaults:
            raise ConversionError(f"{self.name} lacks {field}")
        return self.values.get(field, self.defaults.get(field))

    def _error(self, field, expected):
        value = show(self._get(field))
        return ConversionError(f"{self.name}.{field} must be {expected}, got {value}")
