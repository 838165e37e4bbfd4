"""Weights restored onto a mesh of eight simulated devices, in a process of its own."""

import os
import subprocess
import sys

import jax
import pytest

import models
from tests.pages import ROOT, snippets

PROGRAM = """
import sys
import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec as P
import models
from fna_jax import FNAConfig

path, example = sys.argv[1:]
assert len(jax.devices()) == 8
told = {}
exec(example, told)
mesh = told["mesh"]
paths = []

def last_axis(path, leaf):
    paths.append(path)
    return told["last_axis"](path, leaf)

sharded = models.load(path, sharding=last_axis)
assert "vision.encoder.blocks.0.mlp.fc1.kernel" in paths
kernel = sharded.vision.encoder.blocks[0].mlp.fc1.kernel[...]
assert [shard.data.shape for shard in kernel.addressable_shards] == [(32, 4)] * 8
assert sum(shard.data.nbytes for shard in kernel.addressable_shards) == kernel.nbytes

replicated = models.load(path, sharding=NamedSharding(mesh, P()))
assert all(len(leaf.addressable_shards) == 8 for leaf in jax.tree.leaves(nnx.state(replicated)))

one = models.load(path)
assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(nnx.state(one))} == {1}
encode = nnx.jit(lambda model, images: model.encode_image(images))
images = np.random.default_rng(0).standard_normal((8, 64, 64, 3), np.float32)
fna = FNAConfig("1:2", 12)  # the block before has exact attention
with jax.default_matmul_precision("highest"):
    expected, *others = (
        np.asarray(encode(models.with_attention(model, fna), images))
        for model in (one, sharded, replicated)
    )
    for actual in others:
        error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
        assert error < 5e-6, error  # measured: 4e-7
        print(error)
"""


@pytest.mark.slow
def test_weights_go_where_the_pages_send_them(small_model):
    pages = snippets().items()
    (example,) = (x for name, x in pages if "devices.md" in name and "sharding=" in x)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small_model), example],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "sharding, words",
    [
        ("model", "must be a jax.sharding.Sharding: 'model'"),
        (lambda path, leaf: None, "must be a jax.sharding.Sharding: None"),
    ],
)
def test_what_is_no_sharding_is_refused(small_model, sharding, words):
    with pytest.raises(ValueError, match=words):
        models.load(small_model, sharding=sharding)


def test_a_sharding_that_does_not_fit_is_refused(small_model):
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("model")
    with pytest.raises(ValueError, match="the sharding of logit_scale"):
        models.load(small_model, sharding=jax.sharding.NamedSharding(mesh, spec))
