"""Tokens split over eight simulated devices, in a process of its own, against one device."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks.sharding import communicated_bytes

ROOT = pathlib.Path(__file__).parents[2]
CASES = {  # batch, tokens, heads, key heads, landmarks, guaranteed tokens; four or more per device
    "padded, grouped heads": (2, 64, 4, 2, 12, [0, 40]),
    "more guaranteed than landmarks": (1, 64, 2, 2, 5, list(range(3, 64, 8))),
    "more landmarks than eligible tokens, a prefix on two devices": (2, 32, 2, 1, 30, [*range(5)]),
}
ARMS = "nystrom", "centroid"
PROGRAM = """
import functools, json, re, sys, textwrap
import jax, jax.numpy as jnp, numpy as np
import fna_jax
from fna_jax import sharded
from jax.sharding import AxisType, PartitionSpec as P

mesh = jax.make_mesh((8,), ("tokens",), axis_types=(AxisType.Auto,))
split = P(None, "tokens")


def fna(module, query, key, value, landmarks, mask, prefix, **axis):
    attend = module.fast_nystrom_attention
    return attend(query, key, value, landmarks, key_mask=mask, **axis), landmarks


def centroid(module, query, key, value, landmarks, mask, prefix, **axis):
    points, options = key.mean(axis=-2), dict(key_mask=mask, **axis)
    clusters = module.assign_clusters(points, landmarks, num_prefix=prefix, **options)
    clusters = module.kmeans_clusters(points, clusters, steps=1, **options)
    return module.centroid_attention(query, key, value, clusters, **options), clusters.assignment


ARMS = {"nystrom": fna, "centroid": centroid}


def one(arms, num_landmarks, prefix, module, query, key, value, mask, guarantee, **axis):
    landmarks = module.select_landmarks(
        query.mean(axis=-2), num_landmarks, guarantee=guarantee, exclude=~mask, **axis
    )
    inputs = query, key, value, landmarks, mask, prefix
    return {arm: ARMS[arm](module, *inputs, **axis) for arm in arms}


def many(arms, *settings):
    function = functools.partial(one, arms, *settings, sharded, axis_name="tokens")
    chosen = {"nystrom": P(), "centroid": split}
    out_specs = {arm: (split, chosen[arm]) for arm in arms}
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(split,) * 5, out_specs=out_specs))


def collectives(arm, tokens):
    # What the compiled program sends, line by line, for another number of tokens.
    x = jax.ShapeDtypeStruct((1, tokens, 4, 8), jnp.float32)
    mask = jax.ShapeDtypeStruct((1, tokens), bool)
    text = many([arm], 12, 1).lower(x, x, x, mask, mask).compile().as_text()
    pattern = r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\\("
    return sorted(" ".join(found) for found in re.findall(pattern, text))


def distance(a, b, where=True):
    return float(np.max(np.abs(np.where(where, a - b, 0))) / np.max(np.abs(np.where(where, b, 0))))


report = {"devices": jax.device_count()}
for arm in ARMS:
    report[arm] = {"collectives": [collectives(arm, n) for n in (256, 2048)]}
jax.config.update("jax_default_matmul_precision", "highest")
for name, case in json.loads(sys.argv[1]).items():
    batch, tokens, heads, key_heads, num_landmarks, first = case
    rng = np.random.default_rng(0)
    query, key, value = (
        rng.standard_normal((batch, tokens, h, 8)).astype(np.float32)
        for h in (heads, key_heads, key_heads)
    )
    mask = np.ones((batch, tokens), bool)
    mask[:, -7:] = False
    key[~mask] = np.nan
    guarantee = np.zeros((batch, tokens), bool)
    guarantee[:, first] = True
    guarantee &= mask
    arguments = query, key, value, mask, guarantee
    real = mask[..., None, None]
    prefix = int(np.sum(np.cumprod(guarantee[0])))  # as many in front are guaranteed
    single = functools.partial(one, ARMS, num_landmarks, prefix, fna_jax)
    parts = many(ARMS, num_landmarks, prefix)
    expected, found = jax.jit(single)(*arguments), parts(*arguments)
    for arm in ARMS:
        (expected_out, chosen), (out, mine) = expected[arm], found[arm]
        same = all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, chosen)))
        report[arm][name] = {"error": distance(out, expected_out, real), "same choice": same}
    if name.startswith("padded"):  # gradients of the real tokens' outputs, of both arms
        outputs = lambda run, x: (jnp.where(real, out, 0) for out, _ in run(*x).values())
        loss = lambda run: lambda *x: sum(jnp.sum(jnp.sin(out)) for out in outputs(run, x))
        of = lambda run: jax.jit(jax.grad(loss(run), (0, 1, 2)))(*arguments)
        report["gradient error"] = float(np.max([*map(distance, of(parts), of(single))]))

example = dict(vars(sharded), functools=functools)
exec(textwrap.dedent(sharded.__doc__.partition("::")[2].partition("Centroid")[0]), example)
x = jax.ShapeDtypeStruct((1, 128, 2, 4), jnp.float32)
report["docstring"] = jax.eval_shape(example["attend"], x, x, x).shape
x, mask = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), jax.ShapeDtypeStruct(x.shape[:2], bool)
for arm, (out, _) in jax.eval_shape(many(ARMS, 12, 1), x, x, x, mask, mask).items():
    report[arm]["dtype"] = str(out.dtype)
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CASES)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    report = json.loads(process.stdout)
    assert report["devices"] == 8
    return report


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("arm", ARMS)
def test_eight_devices_compute_what_one_does(report, arm, case):
    assert report[arm][case]["same choice"]
    assert report[arm][case]["error"] < 5e-6


def test_the_docstrings_program_traces(report):
    """Masks left out, and the mesh's axes checked; what it computes is tested above."""
    assert report["docstring"] == [1, 128, 2, 4]


@pytest.mark.parametrize("arm", ARMS)
def test_outputs_are_bfloat16_where_inputs_are(report, arm):
    assert report[arm]["dtype"] == "bfloat16"


def test_gradients_pass_the_collectives(report):
    assert report["gradient error"] < 5e-6


@pytest.mark.parametrize("arm", ARMS)
def test_communication_does_not_grow_with_the_tokens(report, arm):
    few, many = report[arm]["collectives"]
    assert few == many


@pytest.mark.parametrize("arm", ARMS)
def test_communication_is_what_the_benchmark_counts(report, arm):
    def size(line):
        shapes = re.findall(r"[fs]32\[([\d,]*)\]", line)
        return sum(4 * math.prod(map(int, shape.split(","))) for shape in shapes)

    lines = report[arm]["collectives"][0]
    (step,) = (line for line in lines if "f32[1,8,10]" in line)  # score, position, 8 features
    total = sum(map(size, lines)) + 11 * size(step)  # the step runs for each of 12 landmarks
    options = dict(features=8, itemsize=4, heads=4, head_dim=8)
    counted = communicated_bytes(arm, 12, 8, lloyd_steps=1, **options)
    assert total == sum(counted.values())
