"""The names and configs of V-JEPA 2: with a classifier and without, and what is refused."""

import json

import numpy as np
import pytest
import safetensors.numpy

from convert.loading import convert_checkpoint
from convert.verify import random_inputs
from tests import zoo

CLASSIFIER = "vjepa2_classifier_hf"


@pytest.fixture
def folder(tmp_path):
    return zoo.write(CLASSIFIER, tmp_path / "source")


def change(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def test_the_predictor_is_read_past_and_may_be_absent(folder):
    expected, report = convert_checkpoint(folder)
    predictor = {name for name in zoo.tensors(CLASSIFIER) if ".predictor." in name}
    assert report.ignored.keys() == predictor and len(predictor) > 20
    assert len(set(report.ignored.values())) == 1
    tensors = {name: x for name, x in zoo.tensors(CLASSIFIER).items() if name not in predictor}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    model, report = convert_checkpoint(folder)
    assert not report.ignored and report.labels == tuple(f"Pushing [thing {i}]" for i in range(5))
    zoo.assert_same_leaves(model, expected)


def test_the_blocks_of_the_pooler_are_four_times_as_wide_as_its_tokens(folder):
    """Whatever `mlp_ratio` says of the encoder's."""
    model, _ = convert_checkpoint(folder)
    assert model.config.encoder.mlp_dim == 112
    assert [x.mlp.fc1.kernel.shape for x in (model.encoder.blocks[0], model.pooler)] == [
        (32, 112),
        (32, 128),
    ]


def test_a_tensor_that_nobody_knows_is_refused(folder, refused):
    tensors = zoo.tensors(CLASSIFIER) | {"vjepa2.predictor.extra": np.zeros(1, np.float32)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    assert "vjepa2.predictor.extra' is unknown" in refused(folder)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"in_chans": 1}, "in_chans must be 3, got 1"),
        ({"tubelet_size": 4}, "tubelet_size must be 2, got 4"),
        ({"qkv_bias": False}, "qkv_bias must be True, got False"),
        ({"num_pooler_layers": 0}, "num_pooler_layers must be an integer in 1..128, got 0"),
        ({"num_pooler_layers": 2}, "pooler.self_attention_layers.1.layer_norm1.weight is missing"),
        ({"crop_size": [32, 48]}, "crop_size must be of something square, got [32, 48]"),
        ({"crop_size": 30}, "image_size 30 does not divide by patch_size 8"),
        ({"num_attention_heads": 8}, "at least 6, got 4"),
        ({"mlp_ratio": "four"}, "mlp_ratio must be a number"),
        ({"hidden_act": "relu"}, "hidden_act must be one of"),
    ],
)
def test_configs_that_are_refused(folder, refused, fields, message):
    assert message in refused(change(folder, **fields))


def test_videos_to_compare_are_short_and_square(folder):
    """At the published size all frames would be 8,192 tokens, whose matrix transformers forms."""
    shapes = [images.shape for images, _ in random_inputs(convert_checkpoint(folder)[0].config)]
    assert shapes == [(2, 4, 32, 32, 3), (2, 6, 48, 48, 3)]
