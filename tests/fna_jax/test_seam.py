"""FastNystromAttention as the attention_fn of both Flax APIs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fna_jax import (
    FastNystromAttention,
    FNAConfig,
    exact_attention,
    fast_nystrom_attention,
    select_landmarks,
)
from fna_jax.layers import attend_in_layer, partition_in_layer
from tests.conftest import random_qkv, rel_max_error

WIDTH, HEADS, TOKENS = 16, 2, 20
FNA = FastNystromAttention(6, inverse_steps=2)  # six are tested below
INPUTS = np.random.default_rng(0).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)
KEY_MASK = np.arange(TOKENS) < np.array([[13], [20]])


def nnx_layer(attention_fn=FNA, **kw):
    return nnx.MultiHeadAttention(
        HEADS,
        WIDTH,
        attention_fn=attention_fn,
        bias_init=nnx.initializers.normal(),
        decode=False,
        rngs=nnx.Rngs(0),
        **kw,
    )


def linen_layer(attention_fn=FNA, **kw):
    return linen.MultiHeadDotProductAttention(HEADS, attention_fn=attention_fn, **kw)


def variables_of(layer):
    """The weights of an nnx layer as linen's variables."""
    return {"params": nnx.to_pure_dict(nnx.state(layer, nnx.Param))}


@functools.cache
def weights():
    return variables_of(nnx_layer())


def call(api, inputs=INPUTS, *, attention_fn=FNA, settings=(), **kw):
    """The layer's output in one of the two APIs, compiled; the weights are the same."""
    settings = dict(settings)
    if api == "nnx":
        layer = nnx_layer(attention_fn, **settings)
        return nnx.jit(lambda layer, x: layer(x, **kw))(layer, inputs)
    layer = linen_layer(attention_fn, **settings)
    return jax.jit(lambda v, x: layer.apply(v, x, **kw))(weights(), inputs)


def call_with_traced_mask(api, inputs, fna):
    """With a mask as Flax makes it, of which only the shape is known while tracing."""
    mask = linen.make_attention_mask(KEY_MASK, KEY_MASK)
    if api == "nnx":
        return nnx.jit(lambda layer, x, mask: layer(x, mask=mask))(nnx_layer(fna), inputs, mask)
    layer = linen_layer(fna)
    return jax.jit(lambda v, x, mask: layer.apply(v, x, mask=mask))(weights(), inputs, mask)


@functools.partial(jax.jit, static_argnames="fna")
def by_hand(variables, inputs, key_mask=None, fna=FNA):
    """What the layer must compute, from its weights."""
    params = variables["params"]
    query, key, value = (
        jnp.einsum("bnc,chd->bnhd", inputs, params[name]["kernel"]) + params[name]["bias"]
        for name in ("query", "key", "value")
    )
    features = {"q": query, "k": key, "v": value}[fna.features].mean(axis=2)
    guarantee = np.isin(np.arange(inputs.shape[1]), fna.guarantee)
    guarantee = jnp.broadcast_to(guarantee, inputs.shape[:2])
    landmarks = select_landmarks(
        features,
        fna.num_landmarks,
        method=fna.method,
        guarantee=guarantee if key_mask is None else guarantee & key_mask,
        exclude=None if key_mask is None else ~key_mask,
        rng=jax.random.key(fna.seed) if fna.method == "random" else None,
    )
    out = fast_nystrom_attention(
        query, key, value, landmarks, key_mask=key_mask, inverse_steps=fna.inverse_steps
    )
    return jnp.einsum("bnhd,hdc->bnc", out, params["out"]["kernel"]) + params["out"]["bias"]


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize(
    "fna",
    [
        FNA,
        FastNystromAttention(5, features="k", guarantee=(), inverse_steps=1),
        FastNystromAttention(6, features="v", guarantee=[0, 7]),
        FastNystromAttention(6, method="random", seed=3, inverse_steps=1),
    ],
)
def test_layer_is_fna_by_hand(api, fna):
    expected = by_hand(weights(), INPUTS, fna=fna)
    assert rel_max_error(call(api, attention_fn=fna), expected) < 5e-6


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("form", ["keys", "all queries", "make_attention_mask", "traced"])
def test_key_padding_mask_is_honoured(api, form):
    padded = np.where(KEY_MASK[..., None], INPUTS, 7)
    if form == "traced":
        fna = dataclasses.replace(FNA, mask_is_padding=True)
        output = call_with_traced_mask(api, padded, fna)
    else:
        mask = KEY_MASK[:, None, None, :]
        if form == "all queries":
            mask = jnp.broadcast_to(mask, (2, 1, TOKENS, TOKENS))
        elif form == "make_attention_mask":  # floats; padding reads nothing
            mask = linen.make_attention_mask(KEY_MASK, KEY_MASK)
        output = call(api, padded, mask=mask)
    output = np.asarray(output)
    for b, tokens in enumerate(KEY_MASK.sum(1)):
        alone = by_hand(weights(), INPUTS[b : b + 1, :tokens])[0]
        assert rel_max_error(output[b, :tokens], alone) < 5e-6


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize(
    "mask, message",
    [
        (np.tril(np.ones((2, 1, TOKENS, TOKENS), bool)), "mask is causal.*keep exact attention"),
        (np.tril(np.ones((TOKENS, TOKENS))), "mask is causal"),
        (np.eye(TOKENS, dtype=bool)[None, None, ::-1], "key-padding masks, the same for all"),
        (np.arange(HEADS)[:, None, None] * np.ones((2, 1, 1, TOKENS)) > 0, "key-padding masks"),
        (np.full((2, 1, 1, TOKENS), -1e9, np.float32), r"got -1000000000.0 to .*is a bias"),
        (np.ones((2, 1, 1, 3), bool), r"must be \[\*B, 1, 1, 20\].*, got shape \(2, 1, 1, 3\)"),
        (np.ones((2, TOKENS), bool), r"must be \[\*B, 1, 1, 20\].*, got shape \(2, 20\)"),
    ],
)
def test_other_masks_raise(api, mask, message):
    with pytest.raises(ValueError, match=message):
        call(api, mask=mask)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_a_traced_mask_for_pairs_raises(api):
    with pytest.raises(ValueError, match=r"padding or causal.*mask_is_padding=True.*only="):
        call_with_traced_mask(api, INPUTS, FNA)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_active_dropout_raises_and_inactive_dropout_changes_nothing(api):
    settings = dict(dropout_rate=0.5)
    output = call(api, settings=settings, deterministic=True)
    assert rel_max_error(output, call(api)) < 5e-6
    with pytest.raises(ValueError, match=r"cannot honour dropout_rate \(set deterministic=True\)"):
        if api == "nnx":
            nnx_layer(**settings)(INPUTS, deterministic=False, rngs=nnx.Rngs(1))
        else:
            call(api, settings=settings, deterministic=False, dropout_rng=jax.random.key(1))


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_sowing_weights_raises(api):
    with pytest.raises(ValueError, match="sow_weights: FNA forms no attention matrix"):
        call(api, sow_weights=True)


@pytest.mark.parametrize("api", ["nnx", "linen"])
def test_cross_attention_raises(api):
    with pytest.raises(ValueError, match=r"20 queries and 5 keys.*pooling head"):
        call(api, inputs_k=INPUTS[:, :5])


def test_causal_nnx_layer_raises():
    with pytest.raises(ValueError, match="cannot honour is_causal"):
        call("nnx", is_causal=True)


@pytest.mark.parametrize(
    "keyword, value",
    [
        ("bias", np.zeros((2, HEADS, TOKENS, TOKENS))),
        ("is_causal", True),
        ("input_positions", np.arange(TOKENS)),
        ("qk_attn_weights_einsum", jnp.einsum),
        ("attn_weights_value_einsum", jnp.einsum),
        ("a_keyword_of_next_year", False),
        ("dropout_rate", 0.5),
        ("module", object()),
    ],
)
def test_what_cannot_be_honoured_raises_by_name(keyword, value):
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match=f"cannot honour.*{keyword}.*keep exact attention"):
        FNA(x, x, x, **{keyword: value})


@pytest.mark.parametrize(
    "change",
    [
        dict(query=INPUTS[:, :3]),
        dict(tokens=4, mask=np.arange(4) < np.array([[3], [2]])[:, None, None]),
        dict(bias=np.random.default_rng(1).standard_normal((2, HEADS, TOKENS, TOKENS))),
        dict(mask=np.tril(np.ones((1, 1, TOKENS, TOKENS)))),
        dict(mask=np.tril(np.ones((TOKENS, TOKENS), bool))),
        dict(is_causal=True),
    ],
    ids=["cross-attention", "few tokens", "bias", "causal mask", "causal [N, N]", "is_causal"],
)
def test_otherwise_exact_is_flaxs_attention(change):
    fna = dataclasses.replace(FNA, otherwise="exact")
    change = dict(change)
    x = INPUTS[:, : change.pop("tokens", TOKENS)]
    query = change.pop("query", x)
    heads = lambda x: x.reshape(*x.shape[:2], HEADS, -1)
    arguments = heads(query), heads(x), heads(x[::-1])
    with pytest.raises(ValueError, match="otherwise='exact'"):
        FNA(*arguments, **change)
    expected = nnx.dot_product_attention(*arguments, **change)
    assert rel_max_error(fna(*arguments, **change), expected) < 5e-6


@pytest.mark.parametrize("otherwise", ["raise", "exact"])
def test_the_scale_and_the_implementation_may_come_with_the_call(otherwise):
    fna = FastNystromAttention(6, inverse_steps=0, otherwise=otherwise)
    with_scale = dataclasses.replace(fna, scale=0.1)

    @jax.jit
    def outputs(x):
        call = fna(x, x, x, scale=0.1, implementation="xla")
        return call, with_scale(x, x, x), fna(x, x, x)

    x = INPUTS.reshape(2, TOKENS, HEADS, -1)[:, : 3 if otherwise == "exact" else TOKENS]
    output, expected, default = outputs(x)
    np.testing.assert_array_equal(output, expected)
    assert rel_max_error(default, expected) > 1e-3


def test_settings_that_contradict_the_call_raise():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match=r"scale \(FastNystromAttention.scale is set too"):
        dataclasses.replace(FNA, scale=0.1)(x, x, x, scale=0.2)
    with pytest.raises(ValueError, match="implementation='xla', 'pallas' or None, got 'cudnn'"):
        FNA(x, x, x, implementation="cudnn")


def test_values_may_have_another_head_dimension():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    whole, part = jax.jit(lambda x: (FNA(x, x, x), FNA(x, x, x[..., :3])))(x)
    assert rel_max_error(part, whole[..., :3]) < 5e-6


def test_dropout_that_depends_on_traced_values_is_refused_in_a_sentence():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    apply = lambda traced, **kw: jax.eval_shape(
        lambda d: FNA(x, x, x, deterministic=d, **kw), traced
    )
    with pytest.raises(ValueError, match="traced dropout_rate or deterministic: make determ"):
        apply(True, dropout_rate=0.5)
    assert apply(True).shape == x.shape  # without dropout it means nothing


def test_what_changes_nothing_is_accepted():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    apply = jax.jit(lambda x, **kw: FNA(x, x, x, deterministic=True, dropout_rate=0.5, **kw))
    output = apply(x, a_keyword_of_next_year=None, input_positions=None, bias=None, mask=None)
    np.testing.assert_array_equal(output, apply(x, dropout_rng=jax.random.key(0)))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(features="input"), "'q', 'k', 'v' here, got 'input'"),
        (dict(otherwise="none"), "otherwise must be one of 'raise', 'exact'.*got 'none'"),
        (dict(mask_is_padding=3), "mask_is_padding must be one of False, True.*got 3"),
        (dict(method="kmeans"), "'kmeans'"),
    ],
)
def test_bad_settings_raise(change, message):
    with pytest.raises(ValueError, match=message):
        FastNystromAttention(6, **change)


@pytest.mark.parametrize("position", [TOKENS, -1])
def test_a_guaranteed_position_outside_the_tokens_raises(position):
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match=rf"guarantee names \[{position}\].*{TOKENS} tokens"):
        FastNystromAttention(6, guarantee=(0, position))(x, x, x)


def test_equal_settings_trace_once():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def apply(fna, x):
        traces.append(fna)
        return fna(x, x, x)

    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    apply(FastNystromAttention(6, inverse_steps=0), x)
    apply(FastNystromAttention(6, inverse_steps=0, guarantee=[0]), x)
    assert len(traces) == 1
    apply(FastNystromAttention(5, inverse_steps=0), x)
    assert len(traces) == 2


@pytest.mark.parametrize("api", ["nnx", "linen"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype("float16")])
def test_dtype_is_honoured(api, dtype):
    output = call(api, settings=dict(dtype=dtype))
    assert output.dtype == dtype
    assert rel_max_error(output, call(api)) < 0.02  # measured: 5e-3 in bfloat16, 1e-3 in float16


def test_dtype_of_the_call_is_that_of_the_output():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    dtype = lambda *qkv, **kw: jax.eval_shape(lambda *qkv: FNA(*qkv, **kw), *qkv).dtype
    assert dtype(x, x, x, dtype=np.dtype("bfloat16")) == jnp.bfloat16
    assert dtype(x, x.astype(np.float16), x) == np.float32


@pytest.mark.parametrize("precision", ["high", jax.lax.Precision.HIGH])
def test_precision_is_that_of_every_product_that_the_method_leaves_open(precision):
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)

    def precisions(precision):
        """Precisions of the products with all tokens; those among landmarks are always highest."""
        text = jax.jit(lambda x: FNA(x, x, x, precision=precision)).lower(x).as_text()
        products = [line for line in text.splitlines() if "dot_general" in line]
        return {
            name for name in ("HIGHEST", "HIGH,", "DEFAULT")
            for line in products if f"x{TOKENS}x" in line and name in line
        }  # fmt: skip

    assert precisions(precision) == {"HIGH,"}
    with jax.default_matmul_precision("default"):
        assert precisions(None) <= {"DEFAULT"}  # the caller's default is kept


def test_unknown_precision_raises():
    x = INPUTS.reshape(2, TOKENS, HEADS, -1)
    with pytest.raises(ValueError, match="precision must be a name"):
        FNA(x, x, x, precision=3)


# Swapping it into a model that somebody else wrote.


class SomebodysNnxModel(nnx.Module):
    def __init__(self, *, rngs):
        self.first = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.second = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)

    def __call__(self, x):
        return self.second(x + self.first(x))


def test_nnx_model_with_fna_shares_the_weights_and_leaves_the_original_exact():
    model = SomebodysNnxModel(rngs=nnx.Rngs(0))
    apply = nnx.jit(lambda model, x: model(x))
    before = apply(model, INPUTS)
    fast = nnx.with_attributes(model, only=nnx.MultiHeadAttention, attention_fn=FNA)
    assert fast.first.attention_fn is FNA and fast.second.attention_fn is FNA
    leaves, shared = (jax.tree.leaves(nnx.state(m)) for m in (model, fast))
    assert len(leaves) == 16 and all(a is b for a, b in zip(leaves, shared))
    assert rel_max_error(apply(fast, INPUTS), before) > 1e-3
    np.testing.assert_array_equal(apply(model, INPUTS), before)


CENTROID = dict(approximation="centroid", features="k")


@pytest.mark.parametrize(
    "settings",
    [
        dict(num_landmarks=5),
        dict(num_landmarks=6, partition="kmeans", grid=(3, 5)),
        dict(num_landmarks=4, windows=6, near=1, grid=[3, 5], guarantee=(0, 1)),
    ],
)
def test_centroid_attention_is_a_choice(settings):
    attend = FastNystromAttention(**CENTROID | settings)
    prefix = len(attend.guarantee)
    query, key, value = random_qkv(tokens=15 + prefix)
    mask = np.arange(15 + prefix) < np.array([[15 + prefix], [11]])
    of_layer = dict(grid=(3, 5), num_prefix=prefix, key_mask=mask)
    fields = {name: v for name, v in settings.items() if name not in ("grid", "guarantee")}
    config = FNAConfig((0,), **CENTROID | fields)

    @jax.jit
    def both(query, key, value):
        states = {"q": query, "k": key, "v": value}
        clusters = partition_in_layer(states, config, None, **of_layer)
        out = attend(query, key, value, mask=mask[:, None, None])
        return out, attend_in_layer(query, key, value, clusters, config, **of_layer)

    assert rel_max_error(*both(query, key, value)) < 2e-6
    assert hash(attend) == hash(dataclasses.replace(attend))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(windows=4), r"pass grid=\(h, w\)"),
        (dict(partition="kmeans"), r"pass grid=\(h, w\)"),
        (dict(grid=(3, 5)), "needs windows"),
        (dict(grid=(3,), windows=4), "grid must be two numbers"),
        (dict(guarantee=(1,)), "must name the first tokens"),
        (dict(near=1), "near=1 needs windows"),
        (dict(inverse_steps=5), "inverse_steps=5 needs approximation='nystrom'"),
    ],
)
def test_settings_of_centroids_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FastNystromAttention(6, **CENTROID | settings)


def test_a_grid_of_other_tokens_is_refused_or_exact():
    settings = CENTROID | dict(windows=4, grid=(4, 4))
    qkv = random_qkv(tokens=16)
    with pytest.raises(ValueError, match="16 tokens, but 1 in front of a grid"):
        FastNystromAttention(5, **settings)(*qkv)
    out = FastNystromAttention(5, otherwise="exact", **settings)(*qkv)
    assert rel_max_error(out, exact_attention(*qkv)) < 2e-6
