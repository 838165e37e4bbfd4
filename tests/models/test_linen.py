"""Our models for linen users: `nnx.bridge.to_linen` gives the same leaves and the same bits."""

import jax
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig
from models.clip import CLIP
from tests.conftest import few, random_images

IMAGES = random_images()
TOKEN_IDS = np.random.default_rng(0).integers(0, 98, (2, 16)).astype(np.int32)


def clip_with_fna(config, fna, *, rngs):
    """What a linen user passes to the bridge in place of the class, to run FNA."""
    return models.with_attention(CLIP(config, rngs=rngs), fna)


def flat(tree):
    """Leaves by path, with the indices of blocks as text on both sides."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(key, "key", key)) for key in path): leaf for path, leaf in leaves}


def variables_of(model):
    return {"params": nnx.to_pure_dict(nnx.state(model, nnx.Param))}


def test_the_door_has_the_same_leaves(clip):
    door = nnx.bridge.to_linen(CLIP, clip.config)
    theirs = flat(jax.eval_shape(door.init, jax.random.key(0), IMAGES)["params"])
    ours = flat(variables_of(clip)["params"])
    assert {path: leaf.shape for path, leaf in theirs.items()} == {
        path: leaf.shape for path, leaf in ours.items()
    }


@pytest.mark.parametrize(
    "method, inputs, fna",
    few(
        [
            ("encode_image", IMAGES, FNAConfig("1:3", 12, inverse_steps=2)),
            ("encode_image", IMAGES, None),
            ("encode_text", TOKEN_IDS, None),  # whose tower runs no FNA
        ],
        1,
    ),
)
def test_the_door_gives_the_same_bits(clip, method, inputs, fna):
    if fna is None:
        model, door = clip, nnx.bridge.to_linen(CLIP, clip.config)
    else:
        model = models.with_attention(clip, fna)
        door = nnx.bridge.to_linen(clip_with_fna, clip.config, fna)
    apply = jax.jit(lambda variables, x: door.apply(variables, x, nnx_method=method))
    direct = nnx.jit(lambda model, x: getattr(model, method)(x))(model, inputs)
    np.testing.assert_array_equal(apply(variables_of(model), inputs), direct)


@pytest.mark.slow
def test_the_door_runs_fna(clip):
    outputs = [
        jax.jit(lambda v, x, door=door: door.apply(v, x).tokens)(variables_of(clip), IMAGES)
        for door in (
            nnx.bridge.to_linen(CLIP, clip.config),
            nnx.bridge.to_linen(clip_with_fna, clip.config, FNAConfig("1:3", 12, inverse_steps=2)),
        )
    ]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
