"""FNA in packages by others, as docs/models.md says; each is skipped where it is missing.

jimm, of nnx, comes with requirements-others.txt. gemma, whose SigLIP is of linen, asks for 2 GB,
TensorFlow among them: `pip install gemma`, in an environment of its own.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from fna_jax import FastNystromAttention, swap_attention
from tests.conftest import random_images, rel_max_error

pytestmark = pytest.mark.reference

FNA = FastNystromAttention(5, inverse_steps=2)
NO_CLASS_TOKEN = FastNystromAttention(5, guarantee=(), inverse_steps=2)
IMAGES = random_images(height=16, width=16)
TOKEN_IDS = np.ones((2, 8), int)


@pytest.fixture(scope="module")
def jimm():
    """The package; its models want a mesh with an axis "fsdp"."""
    package = pytest.importorskip("jimm", reason="needs requirements-others.txt")
    mesh = jax.make_mesh((1,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield package


def vit(jimm, **settings):
    sizes = dict(img_size=16, patch_size=4, num_layers=2, num_heads=2, mlp_dim=32, hidden_size=16)
    model = jimm.VisionTransformer(3, dropout_rate=0.0, rngs=nnx.Rngs(0), **sizes, **settings)
    model.eval()
    return model


def two_towers(model_class):
    model = model_class(
        image_resolution=16,
        vision_layers=2,
        vision_hidden_size=64,
        vision_patch_size=4,
        context_length=8,
        vocab_size=30,
        text_hidden_size=64,
        num_text_heads=2,
        num_text_layers=2,
        rngs=nnx.Rngs(0),
    )
    model.eval()
    return model


def test_jimms_vit_runs_fna_swapped_in_or_built_with_it(jimm):
    model = vit(jimm)
    fast = nnx.with_attributes(model, only=nnx.MultiHeadAttention, attention_fn=FNA)
    output = fast(IMAGES)
    assert rel_max_error(output, model(IMAGES)) > 1e-3
    assert rel_max_error(vit(jimm, attention_fn=FNA)(IMAGES), output) < 5e-6


def test_jimms_clip_runs_fna_in_its_image_tower(jimm):
    model = two_towers(jimm.CLIP)
    everywhere = nnx.with_attributes(model, only=nnx.MultiHeadAttention, attention_fn=FNA)
    with pytest.raises(ValueError, match="may be of padding or causal"):  # in nnx.scan
        everywhere.encode_text(TOKEN_IDS)
    fast = nnx.with_attributes(model, only=nnx.PathContains("vision_model"), attention_fn=FNA)
    np.testing.assert_array_equal(fast.encode_text(TOKEN_IDS), model.encode_text(TOKEN_IDS))
    assert rel_max_error(fast.encode_image(IMAGES), model.encode_image(IMAGES)) > 1e-3


def test_jimms_siglip_keeps_its_pooling_head(jimm):
    model = two_towers(jimm.SigLIP)
    encoder = nnx.All(nnx.PathContains("vision_model"), nnx.Not(nnx.PathContains("map_head")))
    fast = nnx.with_attributes(model, only=encoder, attention_fn=NO_CLASS_TOKEN)
    with pytest.raises(ValueError, match="1 queries and 16 keys"):
        whole = nnx.PathContains("vision_model")
        nnx.with_attributes(model, only=whole, attention_fn=NO_CLASS_TOKEN).encode_image(IMAGES)
    assert rel_max_error(fast.encode_image(IMAGES), model.encode_image(IMAGES)) > 1e-4


@pytest.fixture(scope="module")
def siglip():
    """Gemma's vision transformer, its variables, and images."""
    reason = "needs pip install gemma"
    parts = pytest.importorskip("gemma.gm.nn.vision._vision_utils", reason=reason)
    model = parts.ViTModel(patch_size=(4, 4), width=16, depth=4, mlp_dim=32, num_heads=2)
    return model, model.init(jax.random.key(0), IMAGES)


@pytest.mark.parametrize("only", [None, "Transformer/encoderblock_[23]"])
def test_gemmas_siglip_runs_fna(siglip, only):
    model, variables = siglip

    @jax.jit
    def fast(variables, images):
        with swap_attention(NO_CLASS_TOKEN, only=only):
            return model.apply(variables, images)

    exact = jax.jit(model.apply)(variables, IMAGES)
    for output, expected in zip(jax.tree.leaves(fast(variables, IMAGES)), jax.tree.leaves(exact)):
        assert output.shape == expected.shape
    assert (
        rel_max_error(jax.tree.leaves(fast(variables, IMAGES))[0], jax.tree.leaves(exact)[0]) > 1e-3
    )
