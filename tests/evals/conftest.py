"""A small untrained CLIP for digit scenes, saved as a checkpoint, and settings of a short run."""

import importlib

import pytest
from flax import nnx

import models
from training.companions import write_companions


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The checkpoint directory."""
    folder = tmp_path_factory.mktemp("small")
    encoder = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 32}
    model = models.create(
        "clip-vit-b-32",
        rngs=nnx.Rngs(0),
        vision={"image_size": 64, "patch_size": 8, "encoder": encoder},
        text={"vocab_size": 22, "context_length": 32, "eos_token_id": 2, "encoder": encoder},
        projection_dim=16,
    )
    models.save(model, folder / "model", companions=write_companions(folder))
    return folder / "model"


@pytest.fixture
def short_config(small_model):
    """The settings of `configs/eval.py`, cut to seconds."""
    config = importlib.import_module("configs.eval").get_config()
    config.model = str(small_model)
    config.num_labelled_scenes = 12
    config.num_captioned_scenes = 20
    config.num_fidelity_images = 6
    config.batch_size = 8
    config.fna.num_landmarks = (4, 8)
    config.fna.seeds = (0, 1)
    return config
