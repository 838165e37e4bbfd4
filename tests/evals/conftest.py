"""What tests of evaluations share: settings of a short one, and images to read."""

import functools
import importlib

import numpy as np
import pytest
from PIL import Image

import models

_load_once = functools.cache(models.load)


def write_image(path, *, size=(90, 70), mode="RGB", seed=0):
    """Noise of that width and height; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def short_settings(model):
    """The settings of `configs/eval.py`, cut to seconds."""
    config = importlib.import_module("configs.eval").get_config()
    config.model = str(model)
    config.num_labelled_scenes, config.num_captioned_scenes = 12, 20
    config.num_fidelity_images, config.batch_size = 6, 8
    config.fna.num_landmarks, config.fna.seeds = (4,), (0, 1)
    return config


@pytest.fixture(autouse=True, scope="module")
def models_are_loaded_once():
    """Many jobs open the same model, which none of them changes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "load", _load_once)
        yield


@pytest.fixture
def short_config(small_model):
    return short_settings(small_model)
