"""What holds for the vision tower of every family, on tiny random models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
import models.registry
from fna_jax import FNAConfig
from models.configs import image_shape, position_grid
from tests.conftest import few, random_images, rel_max_error
from tests.models import tiny_llava, tiny_qwen_vl

ENCODER = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48}
SIZES = {"image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 9, "context_length": 4, "encoder": ENCODER}
TINY = {
    "clip": ("clip-vit-b-32", {"vision": SIZES, "text": TEXT}),
    "dinov2": ("dinov2-vit-g-14-reg", SIZES),
    "dinov3": ("dinov3-vit-s-plus-16", SIZES),
    "llava": tiny_llava.settings_of("1.5"),
    "qwen3_vl": tiny_qwen_vl.SETTINGS,
    "qwen3_vl_vision": ("qwen3-vl-2b-vision", SIZES | {"out_width": 24, "deepstack": (0,)}),
    "siglip": (
        "siglip-vit-b-16-224",
        {"vision": SIZES, "text": TEXT},
    ),
    "siglip_vision": ("siglip-vit-b-16-224-vision", SIZES | {"num_classes": 5}),
    "vit": ("vit-ti-16", SIZES | {"num_classes": 5}),
    "vjepa2": ("vjepa2-vit-l-16-256", SIZES | {"num_classes": 5, "pooler_depth": 1}),
}
FAMILIES = pytest.mark.parametrize("family", TINY)
# For what compiles: registers, rotary positions and gates; and nothing in front of the patches.
FEW_FAMILIES = pytest.mark.parametrize("family", few(TINY, ["dinov3", "siglip"]))
FNA = FNAConfig("1:2", 8)


@functools.cache
def tiny(family):
    """A random model of the family. Tests must not change it."""
    name, settings = TINY[family]
    if family == "llava":  # of other sizes than these, for its tiles
        settings = settings | {"vision": SIZES | {"encoder": ENCODER}}
    elif "vision" in settings:
        settings = settings | {"vision": settings["vision"] | {"encoder": ENCODER}}
    else:
        settings = settings | {"encoder": ENCODER}
    return models.create(name, rngs=nnx.Rngs(0), **settings)


@nnx.jit
def pooled(model, images):
    return model(images).pooled


def test_every_family_is_tested():
    """Of those that read images; test_decoder.py has the other."""
    families = models.registry.FAMILIES.items()
    with_vision = lambda family: any(map(models.registry.has_vision, family.variants.values()))
    assert TINY.keys() == {name for name, family in families if with_vision(family)}


@FAMILIES
def test_images_of_training_need_not_be_square(family):
    vision = models.registry.vision_config(tiny(family).config)
    wide = dataclasses.replace(vision, image_size=16, image_width=72)
    assert image_shape(wide) == (16, 72) and position_grid(wide) == (2, 9)
    config = tiny(family).config
    config = wide if config is vision else dataclasses.replace(config, vision=wide)
    tower = models.vision_tower(models.registry.abstract_model(type(tiny(family)), config))
    if family not in ("dinov3", "vjepa2"):  # which learn no positions
        num_prefix = tower.num_prefix - getattr(vision, "num_registers", 0)
        assert tower.positions.shape == (num_prefix + 18, 32)
    with pytest.raises(ValueError, match="image_width"):
        dataclasses.replace(vision, image_width=7)
    with pytest.raises(ValueError, match="image_width must be at least 1, got 0"):
        dataclasses.replace(vision, image_width=0)


@FEW_FAMILIES
def test_one_compilation_for_each_size(family):
    traces = []

    @jax.jit
    def pooled(model, images):
        traces.append(images.shape)
        return model(images).pooled

    for height, width in ((32, 32), (40, 24), (32, 32), (40, 24)):
        view = models.with_attention(tiny(family), FNA)
        jax.eval_shape(pooled, view, random_images(height=height, width=width))
    assert traces == [(2, 32, 32, 3), (2, 40, 24, 3)]


@FAMILIES
def test_a_view_has_the_same_arrays(family):
    model = tiny(family)
    view = models.with_attention(model, FNA)
    leaves = [jax.tree.leaves(nnx.state(x, nnx.Param)) for x in (model, view)]
    assert len(leaves[0]) > 10
    assert all(a is b for a, b in zip(*leaves, strict=True))


@FAMILIES
@pytest.mark.parametrize("height, width, nearest", [(33, 32, "32 or 40"), (32, 7, "8")])
def test_a_size_that_does_not_divide_names_the_nearest(family, height, width, nearest):
    with pytest.raises(ValueError, match=f"the nearest that do: {nearest}$"):
        tiny(family)(np.zeros((1, height, width, 3), np.float32))


@FEW_FAMILIES
def test_bfloat16_is_close_to_float32(family):
    model = tiny(family)
    half = dataclasses.replace(model.config, dtype="bfloat16", param_dtype="bfloat16")
    graphdef, state = nnx.split(models.registry.abstract_model(type(model), half))
    cast = jax.tree.map(lambda x, like: np.asarray(x, like.dtype), nnx.state(model), state)
    exact, low = (pooled(x, random_images()) for x in (model, nnx.merge(graphdef, cast)))
    assert low.dtype == jnp.bfloat16
    assert rel_max_error(low, exact) < 0.1  # 8 bits of mantissa, two blocks


@FEW_FAMILIES
def test_the_bridge_to_linen_has_the_same_leaves(family):
    model = tiny(family)
    linen = nnx.bridge.to_linen(type(model), model.config)
    variables = jax.eval_shape(linen.init, jax.random.key(0), random_images())
    shapes = lambda tree: {
        ".".join(str(getattr(key, "key", key)) for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    expected = shapes(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert shapes(variables["params"]) == expected


def test_gradients_reach_every_leaf():
    """Of the family with registers, gated MLP and LayerScale; rotary positions have no leaves."""
    model = models.with_attention(tiny("dinov2"), FNA)
    loss = lambda model: jnp.sum(jnp.square(model(random_images()).tokens))
    for path, gradient in nnx.to_flat_state(nnx.jit(nnx.grad(loss))(model)):
        gradient = np.asarray(gradient[...])
        assert np.isfinite(gradient).all() and np.any(gradient != 0), path
