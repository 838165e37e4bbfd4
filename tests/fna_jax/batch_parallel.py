"""Every public function with its batch split over eight simulated devices.

Run by eight_devices.py, read by test_eight_devices.py. A case is a function of one dictionary of
arrays whose first axis is the batch, and of nothing else.
"""

import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fna_jax
from fna_jax import softmax
from models.reductions import Remaining, TokenDropping, TokenMerging

TOKENS, HEADS, DIM, WIDTH = 12, 4, 4, 6
DEVICES = 8


def inputs():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.standard_normal((DEVICES, *shape)).astype(np.float32)
    tokens = np.zeros((DEVICES, TOKENS), bool)
    tokens[np.arange(DEVICES), 2 + np.arange(DEVICES)] = True
    return {
        "query": 3 * normal(TOKENS, HEADS, DIM),
        "key": normal(TOKENS, HEADS, DIM),
        "value": normal(TOKENS, HEADS, DIM),
        "shared_key": normal(TOKENS, HEADS // 2, DIM),  # grouped-query attention
        "x": normal(TOKENS, WIDTH),
        "tokens": tokens,
        "mask": np.arange(TOKENS) < np.arange(TOKENS - DEVICES, TOKENS)[:, None] + 1,
        "landmarks": np.tile(np.arange(5, dtype=np.int32), (DEVICES, 1)),
        "kernel": np.asarray(jax.nn.softmax(normal(5, 5))),
    }


OUT_KERNEL = np.random.default_rng(1).standard_normal((HEADS, DIM, WIDTH)).astype(np.float32)
LAYER = functools.partial(fna_jax.FastNystromAttention, 5, inverse_steps=1)


WINDOWS = fna_jax.Windows((2, 5), (2, 3), near=1, num_prefix=2)


def clusters(a):
    return fna_jax.Clusters((10 * a["x"][..., 0]).astype(jnp.int32) % 5, 5)


def qkv(a):
    return a["query"], a["key"], a["value"]


def pairs(mask):
    return (mask[:, :, None] & mask[:, None, :])[:, None].astype(jnp.float32)


def proxy_given(a, sinks):
    weights = fna_jax.tokens.attention_weights(
        a["query"][:, :1], a["key"], key_mask=~sinks & (a["x"][..., 0] < 9)
    )
    received = jnp.mean(weights[:, :, 0], axis=1)
    return received / received[:, :1]


def reduced(a, *reductions):
    """Tokens after blocks that take some away, spread over all, and attention among the rest."""
    left, x, key = Remaining.all_of(a["x"], (2, 5), 2), a["x"], a["key"]
    for reduction in reductions:
        reduce, left = reduction.step({"input": x, "k": key}, left)
        x = reduce(x)
        key = x[:, :, None, :DIM]  # of one head
    out = reductions[-1].attention(3 * key, key, key, left)
    return [left.spread(x), left.size, left.places, out]


CASES = {  # public name -> a function of the inputs
    "FastNystromAttention": lambda a: [
        LAYER(mask_is_padding=True)(*qkv(a), mask=pairs(a["mask"])),
        LAYER(otherwise="exact")(a["query"][:, :3], a["key"], a["value"]),
    ],
    "assign_clusters": lambda a: fna_jax.assign_clusters(
        a["x"], a["landmarks"], key_mask=a["mask"], num_prefix=1
    ),
    "kmeans_clusters": lambda a: fna_jax.kmeans_clusters(a["x"], clusters(a), key_mask=a["mask"]),
    "centroid_attention": lambda a: [
        fna_jax.centroid_attention(
            a["query"],
            a["shared_key"],
            a["shared_key"][..., :3],
            clusters(a),
            windows=windows,
            key_mask=a["mask"],
        )
        for windows in (None, WINDOWS)
    ],
    "causal_centroid_attention": lambda a: [
        fna_jax.causal_centroid_attention(
            a["query"], a["shared_key"], a["shared_key"][..., :3], run_length=3, key_mask=mask
        )
        for mask in (None, a["mask"])
    ],
    "centroid_key_value": lambda a: fna_jax.centroid_key_value(*qkv(a), clusters(a)),
    "exact_attention": lambda a: [
        fna_jax.exact_attention(*qkv(a)),
        fna_jax.exact_attention(
            a["query"], a["shared_key"], a["shared_key"][..., :3], key_mask=a["mask"]
        ),
    ],
    "fast_nystrom_attention": lambda a: fna_jax.fast_nystrom_attention(
        a["query"],
        a["shared_key"],
        a["shared_key"][..., :3],
        a["landmarks"],
        key_mask=a["mask"],
        inverse_steps=1,
    ),
    "landmark_key_value": lambda a: fna_jax.landmark_key_value(
        *qkv(a), a["landmarks"], inverse_steps=1
    ),
    "newton_schulz_inverse": lambda a: fna_jax.newton_schulz_inverse(a["kernel"]),
    "farthest_point_sampling": jax.vmap(lambda a: fna_jax.farthest_point_sampling(a["x"], 5)),
    "select_landmarks": lambda a: [
        fna_jax.select_landmarks(a["x"], 5),
        fna_jax.select_landmarks(a["x"], 5, guarantee=a["tokens"], exclude=a["mask"]),
        jnp.sort(  # all that there are, for each device draws with the same key
            fna_jax.select_landmarks(
                a["x"], TOKENS, method="random", rng=jax.random.key(0), exclude=a["tokens"]
            ).indices
        ),
    ],
    "masked_attention": lambda a: [
        fna_jax.masked_attention(*qkv(a), fna_jax.Masking(*names), tokens=a["tokens"])
        for names in (("X->T", "mask"), ("~T->T", "sink"))
    ],
    "masked_nystrom_attention": lambda a: [
        fna_jax.masked_nystrom_attention(
            *qkv(a),
            a["landmarks"],
            fna_jax.Masking(pattern, "mask"),
            tokens=a["tokens"] if "T" in pattern else None,
            inverse_steps=1,
        )
        for pattern in ("X->T", "X->X")
    ],
    "removed_entries": lambda a: fna_jax.removed_entries(a["tokens"], "~T->T"),
    "suppression_correction": lambda a: fna_jax.suppression_correction(
        *qkv(a), a["x"], OUT_KERNEL, key_mask=a["mask"]
    ),
    "artifact_tokens": lambda a: fna_jax.artifact_tokens(a["tokens"].astype(jnp.int32), a["mask"]),
    "attention_sinks": lambda a: fna_jax.attention_sinks(
        functools.partial(proxy_given, a), a["x"].shape[:2], num_prefix=1, max_sinks=3
    ),
    "class_token_proxy": lambda a: [
        fna_jax.class_token_proxy(a["query"], a["key"], has_class_token=has)
        for has in (True, False)
    ],
    "incoming_attention": lambda a: fna_jax.incoming_attention(
        a["query"], a["key"], key_mask=a["mask"]
    ),
    "massive_by_attention": lambda a: fna_jax.massive_by_attention(a["x"][..., 0], num_prefix=1),
    "massive_by_norm": lambda a: fna_jax.massive_by_norm(jnp.exp(3 * a["x"][..., 0]), num_prefix=1),
    "suppression_matrix": lambda a: fna_jax.suppression_matrix(a["x"], a["value"], OUT_KERNEL),
}
CASES |= {  # of models
    "TokenMerging": lambda a: reduced(a, *2 * [TokenMerging(2, (0,))]),
    "TokenDropping": lambda a: reduced(a, TokenDropping(5, 0, features="k"))[1:],  # no NaN
}


def complaint(function, a):
    """Why tracing fails, one line, or None."""
    try:
        jax.eval_shape(function, a)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]
    return None


def unsplit(function, a):
    """Why tracing on an explicit mesh fails, or outputs whose batch is not split; None if fine."""
    function = jax.jit(function)  # traced once
    if why := complaint(function, a):
        return why
    outputs = jax.tree.leaves(jax.eval_shape(function, a))
    specs = [output.sharding.spec for output in outputs]
    return None if all(spec[0] == "batch" for spec in specs) else f"outputs are {specs}"


def run(functions, a):
    """Outputs from one program for all that trace, why others do not, and who communicates what."""
    functions = {name: jax.jit(function) for name, function in functions.items()}  # traced once
    failed = {name: why for name, f in functions.items() if (why := complaint(f, a))}

    def program(a):
        outputs = {}
        for name, function in functions.items():
            if name not in failed:
                with jax.named_scope(f"case_{name}"):
                    outputs[name] = function(a)
        return outputs

    compiled = jax.jit(program).lower(a).compile()
    sent = re.findall(
        r"= (\S+) (all-reduce|all-gather|all-to-all|collective-permute)\(.*case_(\w+)",
        compiled.as_text(),
    )
    return compiled(a), failed, [f"{case}: {what} {shape}" for shape, what, case in sent]


def error(actual, expected):
    """The largest relative difference of any output."""

    def relative(actual, expected):
        actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
        largest = np.max(np.abs(expected), where=np.isfinite(expected), initial=1e-30)
        with np.errstate(invalid="ignore"):  # infinities that are equal
            difference = np.where(actual == expected, 0, np.abs(actual - expected))
        return np.max(difference) / largest

    return float(np.max(jax.tree.leaves(jax.tree.map(relative, actual, expected))))


# Head by head, and by blocks of queries.
@mock.patch.multiple(softmax, _HEAD_LOGITS=1, _BLOCK_LOGITS=1, _MIN_ROWS=5)
def report():
    found = {}
    mesh = jax.make_mesh((DEVICES,), ("batch",), axis_types=(AxisType.Auto,))
    a = jax.device_put(inputs(), NamedSharding(mesh, P("batch")))
    with jax.numpy_rank_promotion("raise"):
        expected, refused, found["automatic, sent"] = run(CASES, a)
    found["strict ranks"] = {name: refused.get(name) for name in CASES}
    split = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"))
    outputs, failed, found["shard_map, sent"] = run({n: split(f) for n, f in CASES.items()}, a)
    errors = {n: error(outputs[n], x) for n, x in expected.items() if n in outputs}
    found["shard_map"] = refused | failed | errors

    meshes = {
        "explicit": (jax.make_mesh((DEVICES,), ("batch",)), None),
        "explicit, heads too": (jax.make_mesh((DEVICES // 2, 2), ("batch", "heads")), "heads"),
    }
    for name, (mesh, heads) in meshes.items():
        spec = lambda x, heads=heads: P("batch", None, heads) if x.ndim == 4 else P("batch")
        with jax.set_mesh(mesh):
            b = {k: jax.device_put(x, NamedSharding(mesh, spec(x))) for k, x in inputs().items()}
            # The output projection sums over heads: where, only its caller can say.
            found[name] = {
                case: unsplit(f, b)
                for case, f in CASES.items()
                if not (heads and case.startswith("suppression"))
            }
    return found
