"""Tiny checkpoints of every layout: config and names as published, weights made from the names."""

import json
import pathlib
import shutil
import zlib

import numpy as np
import safetensors.numpy

ZOO = pathlib.Path(__file__).parent / "references" / "zoo"
CASES = sorted(folder.name for folder in ZOO.iterdir())
CONFIGS = ("config.json", "open_clip_config.json")


def random_weight(name, shape) -> np.ndarray:
    """Float32 of a tensor, always the same: scales near 1 for norms, otherwise small numbers."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    value = 0.2 * rng.standard_normal(shape)
    is_scale = len(shape) == 1 and not name.endswith("bias")
    return np.asarray(value + is_scale, np.float32)


def tensors(case) -> dict[str, np.ndarray]:
    """All tensors of a case, by the names that the original library writes."""
    shapes = json.loads((ZOO / case / "tensors.json").read_text())
    return {name: random_weight(name, shape) for name, shape in shapes.items()}


def write(case, folder) -> pathlib.Path:
    """The case's checkpoint in a new folder, as a user would have it."""
    folder.mkdir(parents=True)
    for name in CONFIGS:
        if (ZOO / case / name).is_file():
            shutil.copy(ZOO / case / name, folder)
    prefix = "open_clip_" if (folder / "open_clip_config.json").is_file() else ""
    safetensors.numpy.save_file(tensors(case), folder / f"{prefix}model.safetensors")
    return folder


def expected(case) -> dict[str, np.ndarray]:
    """Stages of the original, named "height×width stage"."""
    with np.load(ZOO / case / "expected.npz") as arrays:
        return dict(arrays)
