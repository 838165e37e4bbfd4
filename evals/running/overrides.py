"""A config and its settings from the command line, `--config.FIELD=VALUE`.

A value is read as what its field holds by default, before anything runs: what is typed becomes a
setting of that type, or an error that names the field.
"""

import ast
import dataclasses
import math
import re
import runpy
import warnings

import ml_collections

_OVERRIDE = re.compile(r"--?config(?=[.\[])\.?([^=]*)(?:=(.*))?", re.DOTALL)
_NEGATION = re.compile(r"--?noconfig\.([^=]*)")
_NAMES = re.compile(r"[\w-]+(\s*,\s*[\w-]+)+")  # "zero_shot,knn"
_MOST = 2**31 - 1  # what the arrays of JAX count with
_TRUE, _FALSE = ("true", "t", "1"), ("false", "f", "0")


@dataclasses.dataclass(frozen=True)
class Override:
    """One argument: the field as it was typed, and its value's text, or True or False for none."""

    field: str
    text: str | bool


def load_config(file) -> ml_collections.ConfigDict:
    """What `get_config()` of a Python file returns, without room for new fields.

    Raises:
      ValueError: the file is not Python, or without `get_config`.
    """
    try:
        get_config = runpy.run_path(str(file))["get_config"]
    except (KeyError, SyntaxError) as error:
        raise ValueError(f"{file} is no config, a Python file with get_config(): {error}") from None
    return get_config().lock()


def split_overrides(arguments) -> tuple[list[str], list[Override]]:
    """The arguments that are no overrides, and the overrides.

    `--config.FIELD VALUE` is `--config.FIELD=VALUE`; `--config.FIELD` alone sets it to true, and
    `--noconfig.FIELD` to false.
    """
    others, overrides, arguments = [], [], list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if match := _OVERRIDE.fullmatch(argument):
            field, text = match.groups()
            if text is None:
                last = not arguments or arguments[0].startswith("-")
                text = True if last else arguments.pop(0)
            overrides.append(Override(field, text))
        elif match := _NEGATION.fullmatch(argument):
            overrides.append(Override(match[1], False))
        else:
            others.append(argument)
    return others, overrides


def apply_overrides(config: ml_collections.ConfigDict, overrides) -> None:
    """Sets the fields of a config; of several values of one the last, of a tuple's all.

    Raises:
      ValueError: a field that does not exist, or a value of another type; the config is unchanged.
    """
    fields = dict(_fields(config))
    values = {}
    for override in overrides:
        if override.field not in fields:
            raise ValueError(_no_such_field(override.field, fields))
        default, kind = fields[override.field]
        try:
            value = _value(override.text, default, kind)
        except ValueError as error:
            got = "" if isinstance(override.text, bool) else f"; got {override.text!r}"
            raise ValueError(f"--config.{override.field} must be {error}{got}") from None
        if isinstance(value, tuple) and isinstance(values.get(override.field), tuple):
            value = values[override.field] + value
        values[override.field] = value
    for field, value in values.items():
        *groups, name = field.split(".")
        group = config
        for part in groups:
            group = group[part]
        group[name] = value


def _fields(config, prefix=""):
    """Dotted names, each with its default and its type."""
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, (value, config.get_type(name))


def _no_such_field(typed, fields):
    from models.registry import did_you_mean  # imports jax, which takes seconds

    dotted = re.sub(r"""\[['"]?(\w*)['"]?\]""", r".\1", typed)  # group['field']
    likely = dotted.replace("-", "_").strip(". ")
    if inside := [name for name in fields if name.startswith(f"{likely}.")]:
        return f"{typed!r} is a group of fields of the config: set one, {', '.join(inside)}"
    return f"the config has no field {typed!r}{did_you_mean(likely, list(fields))}"


def _value(text, default, kind):
    """The text as what a field of that default and type holds.

    Raises:
      ValueError: it is something else; the message says what is right.
    """
    if default is None and text == "None":
        return None
    if isinstance(text, bool):
        if kind is not bool:
            raise ValueError("given a value, as in --config.FIELD=VALUE")
        return text
    if kind is tuple:
        of = type(default[0]) if default else str
        try:
            return tuple(_scalar(element, of) for element in _elements(text))
        except ValueError as error:
            raise ValueError(f"{error}, or several, as in {default}") from None
    if kind is object:  # one text, or several
        return tuple(_elements(text)) if text[:1] in ("(", "[") else text
    return _scalar(text, kind)


def _elements(text):
    """The texts of "(1, 2)", "1,2", "[a, b]", "1" or "a"; what is no list is one element."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's, of odd texts
            found = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        bare = text[1:-1] if text[:1] + text[-1:] in ("()", "[]") else text
        return [part.strip() for part in bare.split(",")] if _NAMES.fullmatch(bare) else [text]
    return [str(element) for element in found] if isinstance(found, tuple | list) else [text]


def _scalar(text, kind):
    if kind not in _READERS:
        raise ValueError(f"set in the config's file, as a {kind.__name__}")
    return _READERS[kind](text)


def _boolean(text):
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("true or false")
    return text.lower() in _TRUE


def _whole_number(text):
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number <= _MOST:
        raise ValueError(f"a whole number from 0 to {_MOST}")
    return number


def _number(text):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("a number")
    return number


_READERS = {bool: _boolean, int: _whole_number, float: _number, str: str}
