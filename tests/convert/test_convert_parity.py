"""Converted models against the golden outputs of the PyTorch originals."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny_clip
from flax import nnx

import convert
import models
from fna_jax import FNAConfig
from tests.conftest import few

BOUND = 5e-6  # measured: 4.6e-7 to 8.9e-7

encode_image = nnx.jit(lambda model, images: model.encode_image(images))
encode_text = nnx.jit(lambda model, token_ids: model.encode_text(token_ids))


@nnx.jit
def tokens_and_embedding(model, images):
    output = model(images)
    return output.tokens, model.vision_projection(output.pooled)


@pytest.fixture(scope="module")
def model():
    return convert.load_pretrained(tiny_clip.REFERENCE)


@pytest.fixture(scope="module")
def expected():
    with np.load(tiny_clip.REFERENCE / "expected.npz") as arrays:
        return dict(arrays)


def images(expected, name="pixel_values"):
    return expected[name].transpose(0, 2, 3, 1)  # [B, 3, h, w] → [B, h, w, 3]


def relative_error(actual, expected):
    return np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))


def test_exact_outputs(model, expected):
    pixels = images(expected)
    actual = {
        "exact/last_hidden_state": tokens_and_embedding(model, pixels)[0],
        "exact/image_features": encode_image(model, pixels),
        "text_features": encode_text(model, expected["input_ids"]),
    }
    for name, array in actual.items():
        assert relative_error(array, expected[name]) < BOUND, name


def test_twice_the_resolution(model, expected):
    features = encode_image(model, images(expected, "pixel_values_2x"))
    assert relative_error(features, expected["exact_2x/image_features"]) < BOUND


@pytest.mark.parametrize("features", few(["input", "q", "k", "v"], ["input", "q"]))
@pytest.mark.parametrize("sharing", ["shared", "resample"])
def test_fna_outputs(model, expected, features, sharing):
    settings = json.loads((tiny_clip.REFERENCE / "fna.json").read_text())
    fna = FNAConfig(**settings, features=features, resample=sharing == "resample")
    fast = models.with_attention(model, fna)
    tokens, projected = tokens_and_embedding(fast, images(expected))
    prefix = f"fna/{features}/{sharing}"
    assert relative_error(tokens, expected[f"{prefix}/last_hidden_state"]) < BOUND
    assert relative_error(projected, expected[f"{prefix}/image_features"]) < BOUND


def test_logit_scale_is_that_of_the_file(model):
    assert model.logit_scale[...] == tiny_clip.tensors()["logit_scale"]


def leaves(model):
    return jax.tree.leaves(nnx.to_pure_dict(nnx.state(model)))


def assert_same_weights(actual, expected):
    for a, b in zip(leaves(actual), leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def without_defaults(values):
    """A config.json that leaves out what equals transformers' defaults, as some versions write."""
    for tower in ("text_config", "vision_config"):
        del values[tower]["hidden_act"], values[tower]["layer_norm_eps"]
    del values["vision_config"]["num_channels"]
    return values


# transformers 5.23.0 writes the keys of 4.51.3 (test_convert_live.py); the config differs.
@pytest.mark.parametrize(
    "buffers, values",
    [
        pytest.param(tiny_clip.position_ids(), tiny_clip.config(), id="before 4.31"),
        pytest.param({}, tiny_clip.config() | {"text_config_dict": None}, id="4, null dict"),
        pytest.param({}, tiny_clip.config() | {"dtype": "float32"}, id="5"),
        pytest.param({}, without_defaults(tiny_clip.config()), id="defaults left out"),
    ],
)
def test_every_layout_gives_the_same_model(tmp_path, model, buffers, values):
    folder = tiny_clip.write(tmp_path / "source", tiny_clip.tensors() | buffers, values)
    actual = convert.load_pretrained(folder)
    assert actual.config == model.config
    assert_same_weights(actual, model)


def test_shards_give_the_same_model(tmp_path, model):
    folder = tiny_clip.write_shards(tmp_path / "s", tiny_clip.tensors(), tiny_clip.config())
    for source in (folder, folder / "model.safetensors.index.json"):
        assert_same_weights(convert.load_pretrained(source), model)


def test_a_file_with_its_config_beside_gives_the_same_model(model):
    source = tiny_clip.REFERENCE / "model.safetensors"
    assert_same_weights(convert.load_pretrained(str(source)), model)


@pytest.mark.parametrize("file_dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("asked", [None, "float32", "bfloat16"])
def test_dtypes(tmp_path, file_dtype, asked):
    arrays = {name: x.astype(file_dtype) for name, x in tiny_clip.shallow_tensors().items()}
    folder = tiny_clip.write(tmp_path / "source", arrays, tiny_clip.shallow_config())
    model = convert.load_pretrained(folder, dtype=asked)
    dtype = asked or ("bfloat16" if file_dtype == ml_dtypes.bfloat16 else "float32")
    assert (model.config.dtype, model.config.param_dtype) == (dtype, dtype)
    assert {leaf.dtype.name for leaf in leaves(model)} == {dtype}
    positions = arrays["text_model.embeddings.position_embedding.weight"]
    np.testing.assert_array_equal(model.text.positions[...], positions.astype(dtype))


def test_a_file_of_mixed_dtypes_is_widened(tmp_path):
    arrays = tiny_clip.shallow_tensors()
    arrays["logit_scale"] = arrays["logit_scale"].astype(ml_dtypes.bfloat16)
    folder = tiny_clip.write(tmp_path / "source", arrays, tiny_clip.shallow_config())
    assert convert.load_pretrained(folder).config.dtype == "float32"


def test_bfloat16_model_encodes_close_to_float32(tmp_path, model, expected):
    low = convert.load_pretrained(tiny_clip.REFERENCE, dtype="bfloat16")
    features = np.asarray(encode_image(low, images(expected)), np.float32)
    assert (
        relative_error(features, expected["exact/image_features"]) < 0.05
    )  # 8 bits of mantissa; measured: 0.015
