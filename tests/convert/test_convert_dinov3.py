"""The authors' files of DINOv3: their names, the periods of the rotation, the masks of the biases.

No library here reads them; transformers and timm read the same numbers under their own names.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import convert
from convert.errors import ConversionError
from convert.loading import convert_checkpoint
from convert.originals import prepare_libraries
from convert.verify import BOUND, stages
from models.dinov3 import DINOv3
from models.registry import abstract_model
from models.rotary import patch_coordinates, rotary_angles
from tests import zoo
from tests.conftest import random_images, rel_max_error

CASES = pytest.mark.parametrize("case", ["dinov3_hf", "dinov3_gated_hf"])
TO_ORIGINAL = {
    "embeddings.patch_embeddings": "patch_embed.proj",
    "embeddings.register_tokens": "storage_tokens",
    "embeddings.": "",
    "layer.": "blocks.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.w1",
}
MLPS = {
    "dinov3_hf": {"mlp.up_proj": "mlp.fc1", "mlp.down_proj": "mlp.fc2"},
    "dinov3_gated_hf": {"mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"},
}
PERIODS = 100.0 ** (np.arange(4) / 4)  # of heads of 16 channels


def original(case, dtype=jnp.bfloat16):
    """The tensors of a case as the authors' file has them: query, key and value fused."""
    arrays = zoo.renamed(zoo.tensors(case), TO_ORIGINAL | MLPS[case])
    for i in range(2):
        names = [f"blocks.{i}.attention.{x}_proj" for x in "qkv"]
        weights = [arrays.pop(f"{name}.weight") for name in names]
        arrays[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(weights)
        biases = [arrays.pop(f"{name}.bias", None) for name in names]
        if biases[0] is not None:
            any_numbers = np.full_like(biases[0], 3.0)  # which the mask makes zero
            kept = [np.ones_like(biases[0]), np.zeros_like(biases[0]), np.ones_like(biases[0])]
            arrays[f"blocks.{i}.attn.qkv.bias"] = np.concatenate(
                [biases[0], any_numbers, biases[2]]
            )
            arrays[f"blocks.{i}.attn.qkv.bias_mask"] = np.concatenate(kept)
    norm = {f"local_cls_norm.{leaf}": arrays["norm.weight"] for leaf in ("weight", "bias")}
    return arrays | norm | {"rope_embed.periods": PERIODS.astype(dtype)}


def save(arrays, folder):
    safetensors.numpy.save_file(arrays, folder / "dinov3.safetensors")
    return folder / "dinov3.safetensors"


@CASES
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_authors_files_are_read_without_a_config(case, dtype, tmp_path):
    published = convert.load_pretrained(zoo.write(case, tmp_path / "hf"))
    model, report = convert_checkpoint(save(original(case, jnp.dtype(dtype)), tmp_path))
    size = 14 * model.config.patch_size  # nominal
    expected = dataclasses.replace(published.config, image_size=size, rope_periods=dtype)
    assert model.config == expected and report.guesses == ()
    assert str(report.layout) == "dinov3 (original)"
    assert {"mask_token", "rope_embed.periods", "local_cls_norm.bias"} <= report.ignored.keys()
    zoo.assert_same_leaves(model, published)


def test_periods_that_were_rounded_are_told_in_a_file_of_float32(tmp_path):
    arrays = original("dinov3_hf")
    arrays["rope_embed.periods"] = arrays["rope_embed.periods"].astype(np.float32)
    assert convert.load_pretrained(save(arrays, tmp_path)).config.rope_periods == "bfloat16"


@pytest.mark.parametrize("head_dim", [64, 128])
def test_periods_are_rounded_as_in_training(head_dim):
    count = head_dim // 4
    exact = 100.0 ** (np.arange(count) / count)
    rounded = exact.astype(np.float32).astype(jnp.bfloat16).astype(np.float32)
    coordinates = patch_coordinates((1, 2))
    angles = rotary_angles(coordinates, head_dim, theta=100.0, rounded="bfloat16")
    expected = 2 * np.pi * coordinates[:, 1:] / rounded
    np.testing.assert_allclose(angles[:, count:], expected, rtol=1e-6)
    assert 0.001 < np.max(np.abs(rounded / exact - 1)) <= 2.0**-8


def test_the_published_masks_are_zero_and_leave_no_biases(tmp_path):
    """The authors' repository, issue 195."""
    arrays = original("dinov3_hf")
    for name in [name for name in arrays if name.endswith("bias_mask")]:
        arrays[name] = np.zeros_like(arrays[name])
    model, report = convert_checkpoint(save(arrays, tmp_path))
    assert model.config.encoder.biases == ""
    assert "its mask is zero" in report.ignored["blocks.1.attn.qkv.bias"]


def without_mask(arrays):
    return {name: x for name, x in arrays.items() if not name.endswith("bias_mask")}


def test_without_a_mask_all_biases_count(tmp_path):
    model = convert.load_pretrained(save(without_mask(original("dinov3_hf")), tmp_path))
    assert model.config.encoder.biases == "qkv"
    np.testing.assert_array_equal(model.encoder.blocks[0].attention.key.bias[...], 3.0)


MASK = "blocks.1.attn.qkv.bias_mask"


@pytest.mark.parametrize(
    "name, array, message",
    [
        ("rope_embed.periods", np.float32([1, 2, 3, 4]), "periods must be 100 to the powers i/4"),
        ("rope_embed.periods", np.float32([1, np.nan, 3, 4]), "periods must be 100"),
        ("rope_embed.periods", np.ones((2, 2), np.float32), "periods is missing, or not of 1 axes"),
        ("rope_embed.periods", np.ones(0, np.float32), "32 does not divide into heads of 0"),
        ("rope_embed.periods", np.ones(3, np.float32), "32 does not divide into heads of 12"),
        (MASK, np.full(96, np.nan, np.float32), r"blocks.1.*mask must be ones .* and zeros"),
        (MASK, np.ones(96, np.float32), r"the same in all blocks, got \['qkv', 'qv'\]"),
        (MASK, np.ones(95, np.float32), r"blocks.1.*mask is not \[96\]"),
    ],
)
def test_what_no_file_of_the_authors_has_is_refused(tmp_path, name, array, message):
    with pytest.raises(ConversionError, match=message):
        convert.load_pretrained(save(original("dinov3_hf") | {name: array}, tmp_path))


@pytest.fixture
def theirs():
    """A tiny DINOv3 of timm."""
    pytest.importorskip("torch")
    prepare_libraries()
    timm = pytest.importorskip("timm")
    args = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)
    return timm.create_model("vit_small_patch16_dinov3_qkvb", **args).eval()


def fill(theirs, arrays):
    """Gives timm's model the authors' numbers, the periods among them."""
    import torch

    names = {"storage_tokens": "reg_token", "ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    state = zoo.renamed(arrays, names)
    for name in [name for name in state if name.endswith("qkv.bias")]:
        query, _, value = np.split(state[name], 3)
        state[name.replace("qkv.bias", "q_bias")] = query
        state[name.replace("qkv.bias", "v_bias")] = value
    theirs.load_state_dict({name: torch.from_numpy(state[name]) for name in theirs.state_dict()})
    theirs.rope.periods = torch.from_numpy(arrays["rope_embed.periods"].astype(np.float32))


@pytest.mark.reference
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_authors_files_compute_what_timm_does_with_their_periods(theirs, tmp_path, dtype):
    import torch

    arrays = original("dinov3_hf", jnp.dtype(dtype))
    fill(theirs, arrays)
    images = random_images(height=32, width=48)
    with torch.no_grad():
        expected = theirs.forward_features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    model = convert.load_pretrained(save(arrays, tmp_path))
    tokens = lambda model: stages(model, images, np.zeros((2, 1), np.int64))["tokens"]
    assert rel_max_error(tokens(model), expected.numpy()) < BOUND / 10  # 1.1e-6 measured
    exact = dataclasses.replace(model.config, rope_periods="float32")
    graphdef = nnx.split(abstract_model(DINOv3, exact))[0]
    change = rel_max_error(tokens(nnx.merge(graphdef, nnx.state(model))), tokens(model))
    assert (change == 0) if dtype == "float32" else (BOUND < change < 5e-3)  # 5.9e-4 measured
