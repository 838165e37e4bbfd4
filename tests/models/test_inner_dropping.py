"""Image tokens that go behind a block of the language model, against masks of all tokens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models.image_tokens as image_tokens
from models.cache import Cache
from models.image_tokens import METHODS, ImageDropping
from models.llava import embed_prompts, generate
from models.rope import token_angles
from models.rotary import rotate
from tests.conftest import rel_max_error
from tests.models.inputs.test_prompts import prompts_of
from tests.models.test_llava import TALL, WIDE
from tests.models.tiny_decoders import prompts, run, tiny
from tests.models.tiny_llava import IMAGE, tiny_llava

ROUNDING = 5e-6  # measured: 1e-6
BLOCK = 0
TOKENS, REAL = prompts(seed=2)  # 9 tokens, and 5 behind padding
IS_IMAGE = REAL & np.isin(np.arange(9), (1, 2, 3, 5, 6, 7))  # six, and three


@pytest.fixture(autouse=True)
def exact_lengths(monkeypatch):
    monkeypatch.setattr(image_tokens, "common_length", lambda num_tokens: num_tokens)


@functools.partial(jax.jit, static_argnums=0)
def read(dropping, model, is_image):
    inner = image_tokens.InnerDropping(dropping, dropping.length(REAL, IS_IMAGE), is_image)
    return model(model.embed(TOKENS), key_mask=REAL, dropping=inner, last_only=True)


@jax.jit
def masked(model, left):
    """Last state and cache where blocks behind `BLOCK` do not see what is not left."""
    positions = jnp.maximum(jnp.cumsum(REAL, axis=1) - 1, 0)
    x, before = model._run(model.embed(TOKENS), REAL, positions, stop=BLOCK + 1)
    x, behind = model._run(x, left, positions, start=BLOCK + 1)
    layers = tuple(record.kept for record in before + behind)
    return model.final_norm(x[:, -1:]), Cache(layers, positions[:, -1] + 1)


@jax.jit
def states(model):
    """Queries and keys of `BLOCK`."""
    x = model.hidden_states(model.embed(TOKENS), key_mask=REAL)[BLOCK]
    block, config = model.blocks[BLOCK], model.config
    query, key, _ = block.attention.project(block.norm1(x))
    positions = jnp.maximum(jnp.cumsum(REAL, axis=1) - 1, 0)
    options = dict(theta=config.rope_theta, scaling=config.rope_scaling)
    angles = token_angles(positions, config.head_dim, **options)
    return [rotate(x, angles=angles, num_prefix=0) for x in (query, key)]


def most_attended(model, number, reader=-1):
    """By a token in `BLOCK`, in float64: so many image tokens, and all of the text."""
    query, key = (np.asarray(x, np.float64) for x in states(model))
    key = np.repeat(key, query.shape[2] // key.shape[2], axis=2)
    weights = np.exp(np.einsum("bhd,bnhd->bhn", query[:, reader], key) / query.shape[-1] ** 0.5)
    weights = weights * REAL[:, None]
    received = np.mean(weights / weights.sum(axis=-1, keepdims=True), axis=1)
    left = REAL & ~IS_IMAGE
    for row, count in enumerate(number):
        order = np.argsort(np.where(IS_IMAGE[row], -received[row], np.inf))
        left[row, order[:count]] = True
    return left


def test_those_stay_that_the_last_token_attends_to_most():
    """As if later blocks did not see the others: positions stay, and new tokens go on behind."""
    model, dropping = tiny("qwen3"), ImageDropping(50, "attention", block=BLOCK)
    left = most_attended(model, (3, 2))
    assert (left.sum(axis=1) == (6, 4)).all()
    assert (left != most_attended(model, (3, 2), reader=-2)).any(axis=1).all()
    (state, cache), (expected, whole) = read(dropping, model, IS_IMAGE), masked(model, left)
    assert rel_max_error(state, expected) < ROUNDING
    assert rel_max_error(state, run(model, TOKENS, REAL)[0][:, -1:]) > 1e-3
    assert [layer.key.shape[1] for layer in cache.layers] == [9, 6]
    mine, all_of = np.asarray(cache.layers[1].key), np.asarray(whole.layers[1].key)
    assert rel_max_error(mine[0], all_of[0][left[0]]) < ROUNDING
    assert rel_max_error(mine[1, -4:], all_of[1][left[1]]) < ROUNDING
    np.testing.assert_array_equal(cache.position, whole.position)
    ones = np.ones((2, 1), bool)
    new = [run(model, TOKENS[:, :1], ones, x.with_room(1))[0] for x in (cache, whole)]
    assert rel_max_error(*new) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_text_stays_and_with_all_tokens_nothing_changes(method):
    model = tiny("qwen3")
    state, cache = read(ImageDropping(100, method, block=BLOCK), model, IS_IMAGE)
    hidden, _, exact = run(model, TOKENS, REAL)
    assert rel_max_error(state, hidden[:, -1:]) < ROUNDING
    assert cache.num_bytes == exact.num_bytes
    few_of_them = read(ImageDropping(1, method, block=BLOCK), model, IS_IMAGE)[1].layers[1]
    np.testing.assert_array_equal((few_of_them.log_mass == 0).sum(axis=1), (4, 3))


def test_the_last_token_stays_whatever_it_is():
    inner = ImageDropping(50, "attention", block=0).inside(REAL, REAL)
    np.testing.assert_array_equal(np.asarray(inner.is_image).sum(axis=1), (8, 4))
    assert inner.length == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_llava_writes_behind_what_is_left(method):
    model = tiny_llava("1.5")
    batch = prompts_of("1.5", [[3, IMAGE, 4, 5], [6, IMAGE, 7]], [[WIDE], [TALL]])
    exact = generate(model, batch, max_new_tokens=6)
    same = generate(model, batch, max_new_tokens=6, dropping=ImageDropping(100, method, block=0))
    np.testing.assert_array_equal(same, exact)
    fewer = ImageDropping(10, method, block=0)
    assert (generate(model, batch, max_new_tokens=6, dropping=fewer) >= 0).all()
    embeddings, others = embed_prompts(model, batch, dropping=fewer)
    assert embeddings.shape[:2] == others["key_mask"].shape == batch.tokens.shape


def test_what_does_not_fit_is_refused():
    model, embeddings = tiny("llama"), np.zeros((2, 9, 32), np.float32)
    last = ImageDropping(50, "random", block=1).inside(REAL, IS_IMAGE)
    with pytest.raises(ValueError, match="blocks 0 to 1, none of them behind block 1: drop tokens"):
        model(embeddings, key_mask=REAL, dropping=last, last_only=True)
    other = ImageDropping(50, "random", block=0).inside(REAL[:1], IS_IMAGE[:1])
    with pytest.raises(ValueError, match=r"dropping is for prompts \[1, 9\], but these are \[2, 9"):
        model(embeddings, key_mask=REAL, dropping=other, last_only=True)
    with pytest.raises(ValueError, match="sliding window of 5 tokens"):
        tiny("mistral")(embeddings, key_mask=REAL, dropping=other, last_only=True)
    with pytest.raises(ValueError, match="there are no image tokens to keep 50 % of"):
        ImageDropping(50, "random", block=0).inside(REAL, np.zeros_like(REAL))
