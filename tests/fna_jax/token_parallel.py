"""One sequence with its tokens split over eight simulated devices, against one device.

Run by eight_devices.py, read by test_eight_devices.py.
"""

import functools
import re
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import fna_jax
from fna_jax import sharded

DEVICES = 8
CASES = {  # batch, tokens, heads, key heads, landmarks, guaranteed tokens; four or more per device
    "padded, grouped heads": (2, 64, 4, 2, 12, [3, 40]),
    "more guaranteed than landmarks": (2, 64, 4, 2, 12, [*range(3, 64, 4)]),  # the same programs
    "more landmarks than eligible tokens, a prefix on two devices": (2, 32, 2, 2, 30, [*range(5)]),
}
SPLIT = P(None, "tokens")


def nystrom(module, query, key, value, landmarks, mask, prefix, **axis):
    attend = module.fast_nystrom_attention
    return attend(query, key, value, landmarks, key_mask=mask, **axis), landmarks


def centroid(module, query, key, value, landmarks, mask, prefix, **axis):
    points, options = key.mean(axis=-2), dict(key_mask=mask, **axis)
    clusters = module.assign_clusters(points, landmarks, num_prefix=prefix, **options)
    clusters = module.kmeans_clusters(points, clusters, steps=1, **options)
    return module.centroid_attention(query, key, value, clusters, **options), clusters.assignment


ATTENTIONS = {"nystrom": nystrom, "centroid": centroid}
ARMS = tuple(ATTENTIONS)


def one(arms, num_landmarks, prefix, module, query, key, value, mask, guarantee, **axis):
    """The output of each arm, and what it has chosen, on one device or on a part of the tokens."""
    landmarks = module.select_landmarks(
        query.mean(axis=-2), num_landmarks, guarantee=guarantee, exclude=~mask, **axis
    )
    inputs = query, key, value, landmarks, mask, prefix
    return {arm: ATTENTIONS[arm](module, *inputs, **axis) for arm in arms}


@functools.cache
def single(num_landmarks, prefix):
    """`one` on one device, compiled."""
    return jax.jit(functools.partial(one, ARMS, num_landmarks, prefix, fna_jax))


@functools.cache
def many(arms, *settings):
    """`one` with the tokens split over all devices, compiled."""
    mesh = jax.make_mesh((DEVICES,), ("tokens",), axis_types=(AxisType.Auto,))
    function = functools.partial(one, arms, *settings, sharded, axis_name="tokens")
    chosen = {"nystrom": P(), "centroid": SPLIT}
    out_specs = {arm: (SPLIT, chosen[arm]) for arm in arms}
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(SPLIT,) * 5, out_specs=out_specs))


def shapes(tokens, dtype=jnp.float32):
    """Arguments for one image of so many tokens."""
    x, mask = (
        jax.ShapeDtypeStruct((1, tokens, 4, 8), dtype),
        jax.ShapeDtypeStruct((1, tokens), bool),
    )
    return x, x, x, mask, mask


def asked_for(program):
    """The collectives of a program before it is compiled, each with what it gives."""
    pattern = r'"stablehlo\.(all_\w+|collective_permute|reduce_scatter)".*?-> (tensor<\S+>)'
    return sorted(map(" ".join, re.findall(pattern, program.as_text(), flags=re.DOTALL)))


def sent(program):
    """The collectives of a compiled program, each with what it gives."""
    pattern = r"= (.*?) (all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\("
    return sorted(map(" ".join, re.findall(pattern, program.compile().as_text())))


def inputs(batch, tokens, heads, key_heads, first):
    """Query, key, value, mask and guarantee, with NaN at padding."""
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
    return query, key, value, mask, guarantee & mask


def distance(a, b, where=True):
    return float(np.max(np.abs(np.where(where, a - b, 0))) / np.max(np.abs(np.where(where, b, 0))))


def compared(*sizes, num_landmarks, first, gradients):
    """By arm the error and whether the choice is the same; with `gradients` their error, too."""
    arguments = inputs(*sizes, first)
    *_, mask, guarantee = arguments
    real = mask[..., None, None]
    prefix = int(np.sum(np.cumprod(guarantee[0])))  # as many in front are guaranteed
    whole, parts = single(num_landmarks, prefix), many(ARMS, num_landmarks, prefix)
    expected, split, found = whole(*arguments), parts(*arguments), {}
    for arm in ARMS:
        (right, chosen), (out, mine) = expected[arm], split[arm]
        same = all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, chosen)))
        found[arm] = {"error": distance(out, right, real), "same choice": same}
    if gradients:  # of the real tokens' outputs, of both arms
        outputs = lambda run, x: (jnp.where(real, out, 0) for out, _ in run(*x).values())
        loss = lambda run: lambda *x: sum(jnp.sum(jnp.sin(out)) for out in outputs(run, x))
        of = lambda run: jax.jit(jax.grad(loss(run), (0, 1, 2)))(*arguments)
        found["gradient error"] = float(np.max([*map(distance, of(parts), of(whole))]))
    return found


def example():
    """The shape of what the docstring's program gives; masks left out, the mesh's axes checked."""
    names = dict(vars(sharded), functools=functools)
    exec(textwrap.dedent(sharded.__doc__.partition("::")[2].partition("Centroid")[0]), names)
    x = jax.ShapeDtypeStruct((1, 128, 2, 4), jnp.float32)
    return jax.eval_shape(names["attend"], x, x, x).shape


def report():
    found = {"docstring": example()}
    for arm in ARMS:
        few, more = (many((arm,), 12, 1).lower(*shapes(tokens)) for tokens in (256, 2048))
        found[arm] = {"asked for": [asked_for(few), asked_for(more)], "sent": sent(few)}
    for arm, (out, _) in jax.eval_shape(many(ARMS, 12, 1), *shapes(128, jnp.bfloat16)).items():
        found[arm]["dtype"] = str(out.dtype)
    with jax.default_matmul_precision("highest"):
        found["cases"] = {
            name: compared(*sizes, num_landmarks=landmarks, first=first, gradients="padded" in name)
            for name, (*sizes, landmarks, first) in CASES.items()
        }
    return found
