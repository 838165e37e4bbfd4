"""`tune.json`: the attention that `--config tune.py` chose, as other configs read it."""

import dataclasses
import json

from evals.data.texts import read_json
from evals.running.workdir import write_atomically
from fna_jax import FNAConfig
from fna_jax.config import config_by_block
from models.registry import did_you_mean

TUNED = "tuned"  # what the arm is called
_FIELDS = ("depth", "fna", "measured")


def write_tuned(file, fnas, depth, measured) -> None:
    """Writes settings for a model of so many blocks, and what was measured of them, atomically."""
    record = {"depth": depth, "fna": [_changed(fna) for fna in fnas], "measured": measured}
    write_atomically(file, json.dumps(record, indent=2, allow_nan=False))


def read_tuned(file, depth) -> tuple[FNAConfig, ...]:
    """The settings for `models.with_attention`; none for exact attention in all blocks.

    Args:
      file: of `write_tuned`; what it has under "measured" is not looked at, and may be missing.
      depth: blocks of the model that will run them.

    Raises:
      FileNotFoundError, ValueError: no such file, of a model of another depth, or with fields that
        are missing, unknown or out of range.
    """
    record = read_json(file)
    _check_fields(file, record, _FIELDS, needed=_FIELDS[:2])
    if record["depth"] != depth:
        raise ValueError(
            f"{file} is for a model of {record['depth']!r} blocks, and this one has {depth}: tune "
            "it with --config tune.py"
        )
    if not isinstance(record["fna"], list):
        raise ValueError(f"{file}: 'fna' must be a list of settings, got {record['fna']!r}")
    fnas = tuple(_settings(file, fields) for fields in record["fna"])
    try:
        blocks = config_by_block(fnas)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if blocks and max(blocks) >= depth:
        raise ValueError(f"{file}: block {max(blocks)} is beyond 0 to {depth - 1}")
    return fnas


def _settings(file, fields):
    """The FNAConfig of a json's object."""
    every = dataclasses.fields(FNAConfig)
    needed = [field.name for field in every if field.default is dataclasses.MISSING]
    _check_fields(file, fields, [field.name for field in every], needed)
    try:
        return FNAConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def _check_fields(file, record, known, needed):
    """Raises ValueError for what is no object with these fields."""
    if not isinstance(record, dict):
        raise ValueError(f"{file}: expected an object of fields, as tune.py writes, got {record!r}")
    for name in record:
        if name not in known:
            raise ValueError(f"{file}: unknown field {name!r}{did_you_mean(name, known)}")
    for name in needed:
        if name not in record:
            raise ValueError(f"{file}: the field {name!r} is missing")


def _changed(fna):
    """The fields away from their defaults."""
    values = dataclasses.asdict(fna)
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(fna)
        if values[field.name] != field.default
    }
