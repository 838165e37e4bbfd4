"""All that is public compiles for TPUs, by libtpu, without one: `JAX_PLATFORMS=cpu pytest -m
accelerator`."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import estimate, tpu_arms, tpu_compiler
from fna_jax import Windows, centroid_attention, exact_attention
from tests.fna_jax.batch_parallel import CASES, inputs

pytestmark = pytest.mark.accelerator

# Communicated where a batch is split: whether the search for sinks goes on.
ALLOWED = {"attention_sinks": {"all-reduce"}}


@pytest.fixture(scope="module")
def chips():
    pytest.importorskip("libtpu")
    return tpu_compiler.topology("v5e").devices


def test_everything_public_compiles_and_a_split_batch_stays_where_it_is(chips, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: len(chips))
    mesh = Mesh(np.array(chips), ("batch",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, P("batch"))
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    def everything(a):
        outputs = {}
        for name, function in CASES.items():
            with jax.named_scope(f"case_{name}"):
                outputs[name] = function(a)
        return outputs

    text = jax.jit(everything).lower(jax.tree.map(shape, inputs())).compile().as_text()
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    sent = re.findall(rf" ({kinds})(?:-start)?\(.*case_(\w+)", text)
    assert {(case, kind) for kind, case in sent} == {
        (case, kind) for case, kinds in ALLOWED.items() for kind in kinds
    }


@pytest.mark.parametrize("arm", ["FNA, landmarks given", "centroids, k-means"])
def test_memory_is_linear_in_the_tokens(chips, arm):
    def temporary(tokens):
        function, specs = tpu_arms.layer_arms(
            tokens, batch=1, landmarks=16, dtype="bfloat16", heads=2
        )[arm]
        row = tpu_compiler.compile_for("v5e", function, specs)
        assert row["compiles"] == "yes"
        return row["temporary_mb"]

    assert temporary(128**2 + 1) <= 4.4 * temporary(64**2 + 1) + 0.1


@pytest.mark.parametrize("chip", ["v6e", "v5p"])
def test_a_layer_compiles_for_other_chips(chips, chip):
    for arm in ("exact", "FNA, q sampled", "centroids, k-means, near own"):
        options = dict(batch=2, landmarks=8, dtype="float32", heads=2)
        assert (
            tpu_compiler.compile_for(chip, *tpu_arms.layer_arms(257, **options)[arm])["compiles"]
            == "yes"
        )


@pytest.mark.parametrize("count", [1, 4])
def test_a_near_field_is_one_kernel_where_there_is_one_chip(chips, count, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: count)
    options = dict(batch=2, landmarks=8, dtype="bfloat16", heads=2)
    function, specs = tpu_arms.layer_arms(257, **options)["centroids, k-means, near own"]
    sharding = jax.sharding.SingleDeviceSharding(chips[0])
    of_images = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype, sharding=sharding) for x in specs]
    with jax.default_device(chips[0]):
        lowered = jax.jit(jax.vmap(function)).lower(*of_images)
    assert lowered.as_text().count("@tpu_custom_call") == (count == 1)
    assert lowered.compile()


@pytest.mark.parametrize("cut", [None, 2, 3])
def test_a_batch_split_by_shard_map_keeps_its_kernel(chips, cut, monkeypatch):
    """Exact attention's, and the near field's: of a whole grid, and of windows that are uneven."""
    monkeypatch.setattr(jax, "device_count", lambda: len(chips))
    windows = None if cut is None else Windows((16, 16), (cut, cut), num_prefix=100)
    mesh, split = tpu_compiler.mesh("v5e"), P(tpu_compiler.AXIS)

    def attend(*x):
        if windows is None:
            return exact_attention(*x)
        clusters = windows.clusters(x[0].shape[:1])
        return centroid_attention(*x, clusters, windows=windows, residual=False)

    sharding = NamedSharding(mesh, split)
    x = jax.ShapeDtypeStruct(
        (len(chips), 556 if cut is None else 356, 2, 64), "bfloat16", sharding=sharding
    )
    inside = jax.shard_map(attend, mesh=mesh, in_specs=split, out_specs=split)
    with jax.default_device(chips[0]):
        lowered = jax.jit(inside).lower(x, x, x)
        alone = jax.jit(attend).lower(x, x, x)
    assert lowered.as_text().count("@tpu_custom_call") == 1
    assert "@tpu_custom_call" not in alone.as_text()
    assert lowered.compile()


@pytest.mark.parametrize("chip", estimate.CHIPS)
def test_exact_attention_is_one_kernel(chip, monkeypatch):
    """Of any batch shape, with shared heads that fill no register, a mask and a gradient."""
    pytest.importorskip("libtpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    device = tpu_compiler.topology(chip).devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    of = lambda *shape, dtype="bfloat16": jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
    states = of(3, 1, 600, 4, 72), *2 * [of(3, 1, 700, 2, 72)]

    def attend(query, key, value, key_mask):
        return exact_attention(query, key, value, key_mask=key_mask)

    def gradient(*arguments):
        total = lambda *x: jnp.sum(jax.vmap(attend)(*x).astype(jnp.float32))
        return jax.value_and_grad(total)(*arguments)

    with jax.default_device(device):
        lowered = jax.jit(gradient).lower(*states, of(3, 1, 700, dtype=bool))
    assert lowered.as_text().count("@tpu_custom_call") == 1
    assert lowered.compile()
