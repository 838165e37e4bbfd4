"""Settings of a short evaluation."""

import importlib

import pytest


def short_settings(model):
    """The settings of `configs/eval.py`, cut to seconds."""
    config = importlib.import_module("configs.eval").get_config()
    config.model = str(model)
    config.num_labelled_scenes, config.num_captioned_scenes = 12, 20
    config.num_fidelity_images, config.batch_size = 6, 8
    config.fna.num_landmarks, config.fna.seeds = (4, 8), (0, 1)
    return config


@pytest.fixture
def short_config(small_model):
    return short_settings(small_model)
