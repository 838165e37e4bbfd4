"""The one exception of the converters, and how values look in its messages."""

import reprlib

_MOST = 10  # problems listed in one message
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 300
_REPR.maxlevel = 2  # each multiplies the length by up to six


class ConversionError(ValueError):
    """A checkpoint that cannot be converted; the message is one line, with the remedy."""


def show(value) -> str:
    """`repr` cut to a readable length: names and values from files can be long or hostile."""
    try:
        return _REPR.repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a huge {type(value).__name__}"


def one_line(error) -> str:
    """The message of any exception on one line, its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def summarise(problems) -> str:
    """The first of many problems and the number of all, for one line."""
    shown = "; ".join(problems[:_MOST])
    rest = f"; and {len(problems) - _MOST} more" if len(problems) > _MOST else ""
    count = f"{len(problems)} problems: " if len(problems) > 1 else ""
    return f"{count}{shown}{rest}"
