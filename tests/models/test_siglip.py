"""SigLIP with exact attention and with FNA: what differs from CLIP."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import convert
import models
from convert.errors import ConversionError
from convert.originals import prepare_libraries
from convert.siglip import parse_config
from fna_jax import FNAConfig
from models.attends import ApproximateAttention
from models.siglip import VARIANTS
from tests import zoo
from tests.conftest import random_images, rel_max_error

FNA = FNAConfig((1,), 5, features="input", inverse_steps=2)
forward = nnx.jit(lambda model, images: model(images))
encode_text = nnx.jit(lambda model, token_ids: model.encode_text(token_ids))
embed = nnx.jit(lambda model, images: model.vision.embed(images))
pool = nnx.jit(lambda pooling, tokens: pooling(tokens))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    """A SigLIP of 16 vision tokens and 16 text tokens. Tests must not change it."""
    return convert.load_pretrained(zoo.write("siglip_hf", tmp_path_factory.mktemp("zoo") / "model"))


def test_the_size_of_training_need_not_divide(siglip):
    assert siglip.config.vision.image_size == 34  # and patches of 8
    images = random_images(height=34, width=34)
    tokens = embed(siglip, images)
    assert tokens.shape == (2, 4 * 4, 32)
    np.testing.assert_array_equal(embed(siglip, images[:, :32, :32]), tokens)
    with pytest.raises(ValueError, match=r"width 39 .* the nearest that do: 32 or 40"):
        siglip.vision.embed(random_images(height=32, width=39))


@pytest.mark.parametrize("shape", [(2, 7, 32, 3), (32, 32, 3), (2, 32, 32, 4), (32,)])
def test_images_without_a_patch_or_of_another_shape_raise(siglip, shape):
    with pytest.raises(ValueError, match="image"):
        siglip.vision.embed(np.zeros(shape, np.float32))


def test_nothing_is_guaranteed_where_nothing_is_in_front(siglip):
    x = np.random.default_rng(0).normal(size=(2, 16, 8)).astype(np.float32)

    num_prefix = siglip.vision.num_prefix
    fnas = FNA, dataclasses.replace(FNA, guarantee_prefix=False)

    @jax.jit
    def select(x):
        attends = (ApproximateAttention(fna, 0, (4, 4), num_prefix, None, False) for fna in fnas)
        return [attend.select(x, None, None, None).indices for attend in attends]

    np.testing.assert_array_equal(*select(x))


def test_the_pooling_head_stays_exact(siglip):
    fast = forward(models.with_attention(siglip, FNA), random_images())
    assert fast.landmarks.indices.shape == (2, 5)
    assert rel_max_error(pool(siglip.vision.pooling, fast.tokens), fast.pooled) < 5e-6


def test_pooling_is_the_formula_whatever_the_order_of_tokens(siglip):
    pooling = siglip.vision.pooling
    tokens = np.random.default_rng(0).normal(size=(3, 5, 32)).astype(np.float32)
    query, key, value = (
        np.einsum("bnc,chd->bhnd", x, layer.kernel[...]) + np.asarray(layer.bias[...])[:, None]
        for x, layer in (
            (np.asarray(pooling.probe[...])[None, None], pooling.attention.query),
            (tokens, pooling.attention.key),
            (tokens, pooling.attention.value),
        )
    )
    weights = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(8))  # [B, H, 1, N]
    weights /= weights.sum(-1, keepdims=True)
    out = pooling.attention.out
    x = np.einsum("bhnd,hdc->bc", weights @ value, out.kernel[...]) + out.bias[...]
    expected = x + nnx.jit(lambda pooling, x: pooling.mlp(pooling.norm(x)))(pooling, x)
    for order in (slice(None), slice(None, None, -1)):
        assert rel_max_error(pool(pooling, tokens[:, order]), expected) < 5e-6


def test_the_last_text_token_is_pooled_and_sees_all(siglip):
    ids = np.random.default_rng(0).integers(0, 99, 16)
    changed = np.tile(ids, (17, 1))  # the last as it was
    changed[np.arange(16), np.arange(16)] = (ids + 1) % 99
    embeddings = np.asarray(encode_text(siglip, changed))
    assert embeddings.shape == (17, 32)
    assert (np.abs(embeddings[:16] - embeddings[16]).max(axis=1) > 1e-4).all()
    np.testing.assert_array_equal(siglip.text.pool(embeddings[None], None), embeddings[-1:])


def test_logits_are_scaled_and_shifted_cosines(siglip):
    images, texts = np.random.default_rng(0).normal(size=(2, 3, 32)).astype(np.float32)
    cosines = np.sum(images * texts, -1) / np.prod(np.linalg.norm([images, texts], axis=-1), 0)
    expected = np.exp(siglip.logit_scale[...]) * cosines + siglip.logit_bias[...]
    logits = nnx.jit(lambda model, *x: model.logits(*x))(siglip, images, 5 * texts)
    np.testing.assert_allclose(np.diag(logits), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["siglip-vit-so400m-14-384", "siglip2-vit-so400m-14-384"])
def test_the_trained_size_of_so400m_does_not_divide(name):
    vision = VARIANTS[name].vision
    assert vision.image_size % vision.patch_size
    with pytest.raises(ValueError, match="image_size 10 is less than patch_size 14"):
        dataclasses.replace(vision, image_size=10)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(text_config=dict(hidden_size=384)), "projected to 384, but images embedded in 768"),
        (dict(text_config=dict(projection_size=384)), "projected to 384"),
        (dict(vision_config=dict(vision_use_head=False)), "vision_use_head must be True"),
    ],
)
def test_configs_of_other_computations_are_refused(values, message):
    with pytest.raises(ConversionError, match=message):
        parse_config(values)


def test_an_empty_config_is_the_base_model():
    assert parse_config({}).config == VARIANTS["siglip-vit-b-16-224"]
    sizes = dict(text_config=dict(vocab_size=256000), vision_config=dict(image_size=512))
    assert parse_config(sizes).config == VARIANTS["siglip2-vit-b-16-512"]


def test_a_text_tower_alone_is_refused_by_name(tmp_path):
    folder = zoo.write("siglip_hf", tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "siglip_text_model"}')
    with pytest.raises(ConversionError, match="'siglip_text_model' is not supported: "):
        convert.load_pretrained(folder)


def test_the_vision_tower_alone_is_read_by_the_names_of_both_versions(tmp_path):
    newest = zoo.write("siglip_vision_hf", tmp_path / "newest")
    published = zoo.write("siglip_vision_hf", tmp_path / "published")
    tensors = zoo.tensors("siglip_vision_hf")
    tensors = {f"vision_model.{name}": array for name, array in tensors.items()}
    safetensors.numpy.save_file(tensors, published / "model.safetensors")
    zoo.assert_same_leaves(*map(convert.load_pretrained, (newest, published)))


@pytest.mark.reference
def test_logits_are_those_of_transformers(siglip, tmp_path):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    prepare_libraries()
    folder = zoo.write("siglip_hf", tmp_path / "model")
    original = transformers.SiglipModel.from_pretrained(folder).eval()
    images, token_ids = random_images(height=34, width=34), np.arange(48).reshape(3, 16)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        expected = original(torch.from_numpy(token_ids), pixels).logits_per_image
    logits = siglip.logits(siglip.encode_image(images), siglip.encode_text(token_ids))
    assert rel_max_error(logits, expected.numpy()) < 5e-6
