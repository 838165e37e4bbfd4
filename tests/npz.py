"""Tiny files of Google's vision_transformer and big_vision: weights made from their names."""

import json
import pathlib
import re

import numpy as np

from tests.zoo import random_weight

FOLDER = pathlib.Path(__file__).parent / "references" / "npz"
CASES = ("augreg", "siglip")
_NUMBERED = re.compile(r"encoderblock_(\d+)/")


def tensors(case) -> dict[str, np.ndarray]:
    """All arrays of a case, by their names in the file."""
    shapes = json.loads((FOLDER / case / "tensors.json").read_text())
    return {name: random_weight(name, shape) for name, shape in shapes.items()}


def stacked(arrays, tower) -> dict[str, np.ndarray]:
    """Arrays in which the blocks of a tower, "img" or "txt", are one, as big_vision scans them."""
    found, blocks = {}, {}
    for name, array in arrays.items():
        match = _NUMBERED.search(name)
        if match and f"/{tower}/" in name:
            blocks.setdefault(_NUMBERED.sub("encoderblock/", name), {})[int(match[1])] = array
        else:
            found[name] = array
    return found | {name: np.stack([x[i] for i in sorted(x)]) for name, x in blocks.items()}


def write(arrays, file) -> pathlib.Path:
    """The arrays in a file of numpy."""
    np.savez(file, **arrays)
    return file


def expected(case) -> dict[str, np.ndarray]:
    """Stages of the original, named "height×width stage"."""
    with np.load(FOLDER / case / "expected.npz") as arrays:
        return dict(arrays)
