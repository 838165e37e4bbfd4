"""The layers of both Flax APIs with the same weights, and what they compute with FNA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx

from fna_jax import FastNystromAttention, fast_nystrom_attention, select_landmarks

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
