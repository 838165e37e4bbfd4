"""Decoders: caches, padding, grouped heads, positions, on tiny random models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from models.cache import LayerCache
from models.decoder import VARIANTS
from models.rope import RopeScaling, token_angles
from tests.conftest import few, random_qkv, rel_max_error, with_settings
from tests.models.tiny_decoders import KINDS, SIZES, prompts, run, tiny

ROUNDING = 5e-6  # measured: 1e-6
of_kinds = pytest.mark.parametrize("kind", KINDS)


def test_every_published_kind_is_tested():
    features = ("qkv_bias", "qk_norm", "tied_head")
    told = lambda config: [getattr(config, name) for name in features]
    tested = [models.registry.published(name)[1] for name, _ in KINDS.values()]
    assert all(told(config) in map(told, tested) for config in VARIANTS.values())


@pytest.mark.parametrize("kind", few(KINDS, ["mistral", "qwen3"]))
def test_cached_decoding_is_recomputation(kind):
    """Tokens in one call, and in three: seven of a prompt with padding, then one by one."""
    model, (tokens, real) = tiny(kind), prompts()
    whole, _, _ = run(model, tokens, real)
    hidden, _, cache = run(model, tokens[:, :7], real[:, :7])
    parts, cache = [hidden], cache.with_room(2)
    for i in (7, 8):
        hidden, _, cache = run(model, tokens[:, i : i + 1], real[:, i : i + 1], cache)
        parts.append(hidden)
    assert rel_max_error(np.concatenate(parts, axis=1)[real], whole[real]) < ROUNDING
    np.testing.assert_array_equal(cache.position, [9, 5])


def test_an_empty_cache_and_a_prompt_in_pieces():
    """The first piece of the second row is padding alone."""
    model, (tokens, real) = tiny("qwen3"), prompts()
    whole, _, _ = run(model, tokens, real)
    first, _, cache = run(model, tokens[:, :4], real[:, :4], model.init_cache(2, 9))
    second, _, cache = run(model, tokens[:, 4:], real[:, 4:], cache)
    parts = np.concatenate([first, second], axis=1)
    assert rel_max_error(parts[real], whole[real]) < ROUNDING
    assert cache.layers[1].filled == 9


@of_kinds
def test_padding_and_companions_change_nothing(kind):
    model, (tokens, real) = tiny(kind), prompts()
    together, _, _ = run(model, tokens, real)
    alone, _, _ = run(model, tokens[1:, 4:], real[1:, 4:])
    assert rel_max_error(together[1:, 4:], alone) < ROUNDING
    other = np.where(real, tokens, 7)
    other[0] = tokens[0, ::-1]
    np.testing.assert_array_equal(run(model, other, real)[0][1, 4:], together[1, 4:])


def test_padding_may_hold_anything():
    model, (tokens, real) = tiny("qwen2"), prompts()
    embeddings = model.embed(tokens)
    holes = jnp.where(real[..., None], embeddings, jnp.nan)
    call = jax.jit(lambda model, x: model(x, key_mask=real)[0])
    np.testing.assert_array_equal(call(model, holes)[real], call(model, embeddings)[real])


@of_kinds
def test_nothing_comes_from_the_future(kind):
    model, (tokens, real) = tiny(kind), prompts()
    later = tokens.copy()
    later[:, 6:] = (later[:, 6:] + 1) % SIZES["vocab_size"]
    before, after = (run(model, x, real)[0] for x in (tokens, later))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).min(axis=-1).max() > 0


def test_grouped_heads_are_repeated_ones():
    grouped, (tokens, real) = tiny("qwen2"), prompts()
    graphdef, _ = nnx.split(tiny("qwen2", num_kv_heads=4))
    repeat = lambda path, x: (
        jnp.repeat(x, 2, axis=-2) if {"key", "value"} & {str(k.key) for k in path[:-1]} else x
    )
    state = nnx.state(grouped)
    pure = jax.tree_util.tree_map_with_path(repeat, nnx.to_pure_dict(state))
    _, like = nnx.split(tiny("qwen2", num_kv_heads=4))
    nnx.replace_by_pure_dict(like, pure)
    repeated = nnx.merge(graphdef, like)
    expected = run(grouped, tokens, real)[0]
    assert rel_max_error(run(repeated, tokens, real)[0][real], expected[real]) < ROUNDING


def test_a_window_ends_where_the_config_says():
    """Of one block: the token that leaves the window no longer counts, the one in it does."""
    model, (tokens, real) = tiny("mistral", depth=1), prompts(1, 9, padding=(0,))
    expected = run(model, tokens, real)[0][:, -1]
    for changed, same in ((3, True), (4, False)):  # the window of token 8 is 4 to 8
        other = tokens.copy()
        other[:, changed] = (other[:, changed] + 1) % SIZES["vocab_size"]
        equal = np.array_equal(run(model, other, real)[0][:, -1], expected)
        assert equal == same


def test_bfloat16_is_within_its_rounding():
    model, (tokens, real) = tiny("qwen2"), prompts()
    low = with_settings(model, dtype="bfloat16", param_dtype="bfloat16")
    exact, (hidden, logits, cache) = run(model, tokens, real)[0], run(low, tokens, real)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert cache.layers[0].key.dtype == jnp.bfloat16
    assert rel_max_error(hidden.astype(jnp.float32)[real], exact[real]) < 0.05  # measured: 0.01


def test_a_tied_head_is_the_embeddings():
    model, (tokens, real) = tiny("qwen2"), prompts()
    hidden, logits, _ = run(model, tokens, real)
    words = model.token_embedding.embedding[...]
    assert rel_max_error(logits, np.einsum("bnw,vw->bnv", hidden, words)) < ROUNDING
    assert not hasattr(model, "head") and hasattr(tiny("mistral"), "head")


def test_one_compilation_for_prompts_and_one_for_tokens():
    traces = []

    @jax.jit
    def step(model, tokens, key_mask, cache):
        traces.append(tokens.shape)
        return model(model.embed(tokens), key_mask=key_mask, cache=cache)[1]

    model, (tokens, real) = tiny("llama"), prompts()
    cache = model.init_cache(2, 14)
    for part in (slice(0, 9), slice(0, 1), slice(3, 4), slice(1, 2)):
        shapes = jax.eval_shape(step, model, tokens[:, part], real[:, part], cache)
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, cache)
    assert traces == [(2, 9), (2, 1)]


def test_gradients_reach_every_leaf():
    tokens, real = prompts()

    @jax.jit
    @jax.grad
    def gradients(state):
        model = nnx.merge(graphdef, state)
        hidden, _ = model(model.embed(tokens), key_mask=real)
        logits = jax.nn.log_softmax(model.logits_of(hidden))
        return -jnp.sum(jnp.where(real, logits[..., 3], 0))

    for kind in ("qwen2", "qwen3"):  # with biases, and with norms of heads
        graphdef, state = nnx.split(tiny(kind))
        for path, gradient in nnx.to_flat_state(gradients(state)):
            assert np.isfinite(gradient[...]).all() and np.any(gradient[...] != 0), path


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("num_new", [1, 4])
def test_attention_is_the_formula(window, num_new):
    """Of the last tokens to all slots up to theirs, with masses, in float64."""
    query, key, value = random_qkv(tokens=7, heads=4, kv_heads=2)
    real = np.arange(7) >= np.array([[0], [2]])
    cache = LayerCache.of(key, value, real).with_room(2)
    mass = np.random.default_rng(1).integers(1, 5, (2, 7))
    masses = cache.log_mass.at[:, :7].add(np.log(mass))
    cache = dataclasses.replace(cache, log_mass=masses)
    actual = cache.attention(query[:, -num_new:], window=window)
    for row in range(2):
        for i in range(7 - num_new, 7):
            first = 0 if window is None else i + 1 - window
            seen = [j for j in range(max(first, 0), i + 1) if real[row, j]]
            for head in range(4):
                keys, values = key[row, seen, head // 2], value[row, seen, head // 2]
                weights = mass[row, seen] * np.exp(keys @ query[row, i, head] / np.sqrt(8.0))
                expected = weights @ values / weights.sum()
                found = actual[row, i - 7 + num_new, head]
                np.testing.assert_allclose(found, expected, atol=1e-6)  # measured: 2e-7


def angles(positions, **scaling):
    options = dict(theta=1e4, scaling=RopeScaling(**scaling))
    return np.asarray(token_angles(jnp.asarray([positions]), 16, **options)[0], np.float64)


def test_angles_are_the_formula_and_their_scalings():
    frequencies = 1e4 ** -(np.arange(8) / 8)
    np.testing.assert_allclose(angles([0, 3]), [0 * frequencies, 3 * frequencies], rtol=1e-6)
    np.testing.assert_allclose(angles([12], kind="linear", factor=4.0), angles([3]), rtol=1e-6)
    settings = dict(kind="llama3", factor=8.0, original_positions=100)
    ratio = angles([1], **settings)[0] / frequencies
    waves = 100 * frequencies / (2 * np.pi)  # in the texts of before
    np.testing.assert_allclose(ratio[waves > 4], 1, rtol=1e-6)
    np.testing.assert_allclose(ratio[waves < 1], 1 / 8, rtol=1e-6)
    between = (waves > 1) & (waves < 4)
    kept = (waves[between] - 1) / 3
    np.testing.assert_allclose(ratio[between], kept + (1 - kept) / 8, rtol=1e-6)
    assert between.any() and (waves > 4).any() and (waves < 1).any()


def test_more_tokens_than_positions_are_refused_by_their_number():
    model = tiny("llama")
    with pytest.raises(ValueError, match="65 tokens, but the model has positions for 1 to 64"):
        model(np.zeros((1, 65, 32), np.float32), key_mask=np.ones((1, 65), bool))
    with pytest.raises(ValueError, match="99 tokens, but the model has positions for 1 to 64"):
        model.init_cache(1, 99)


def test_a_full_cache_is_refused():
    model, (tokens, real) = tiny("llama"), prompts()
    _, _, cache = run(model, tokens, real)
    with pytest.raises(ValueError, match=r"1 more .* 9 slots, of which 9 .*with_room\(1\)"):
        model(model.embed(tokens[:, :1]), key_mask=real[:, :1], cache=cache)


@pytest.mark.parametrize(
    "shape, mask, words",
    [
        ((1, 3, 31), np.ones((1, 3), bool), r"embeddings must be \[B, N, 32\], got \[1, 3, 31\]"),
        ((3, 32), np.ones((1, 3), bool), r"embeddings must be \[B, N, 32\]"),
        ((1, 3, 32), np.ones((1, 4), bool), r"key_mask must be bool\[1, 3\], .* got bool\[1, 4\]"),
        ((1, 3, 32), np.ones((1, 3)), r"key_mask must be bool\[1, 3\], .* got float"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, mask, words):
    with pytest.raises(ValueError, match=words):
        tiny("llama")(np.zeros(shape, np.float32), key_mask=mask)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (dict(num_kv_heads=3), "num_heads 4 does not divide by num_kv_heads 3"),
        (dict(head_dim=7), "heads of even size, got 7"),
        (dict(sliding_window=0), "sliding_window must be at least 1, got 0"),
        (dict(rope_theta=0.5), "rope_theta must be at least 1, got 0.5"),
        (dict(activation="relu"), "activation must be one of"),
        (dict(rope_scaling=dict(kind="yarn")), "kind must be one of none, linear, llama3"),
        (dict(rope_scaling=dict(kind="linear", factor=0.5)), "factor must be at least 1, got 0.5"),
        (dict(rope_scaling=dict(low_frequency=9.0)), "the second larger, got 9.0 and 4.0"),
    ],
)
def test_configs_that_no_model_has_are_refused(overrides, words):
    with pytest.raises(ValueError, match=words):
        models.create("llama-2-7b", rngs=nnx.Rngs(0), **SIZES | overrides)


def test_what_needs_images_says_so():
    for call in (
        models.vision_tower,
        lambda model: models.with_attention(model, None),
        lambda model: models.with_interventions(model, {}),
        lambda model: models.with_fewer_tokens(model, None),
        lambda model: models.recommended(model, 5000),
    ):
        with pytest.raises(ValueError, match="reads text alone and has no vision tower"):
            call(tiny("llama"))


def test_a_saved_decoder_is_the_same(tmp_path):
    scaling = {"kind": "linear", "factor": 2.0}
    name, settings = KINDS["mistral"]
    model = models.create(name, rngs=nnx.Rngs(0), **SIZES | settings, rope_scaling=scaling)
    models.save(model, tmp_path / "saved")
    again, (tokens, real) = models.load(tmp_path / "saved"), prompts()
    assert again.config == model.config and again.config.rope_scaling.factor == 2
    np.testing.assert_array_equal(run(again, tokens, real)[1], run(model, tokens, real)[1])
