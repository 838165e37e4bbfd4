"""Landmarks in place of a prompt: with their mass, and where they change nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.cache import Cache
from models.generation import generate
from models.landmark_cache import LandmarkCache
from tests.conftest import rel_max_error
from tests.models.test_generation import NUM_NEW, PROMPTS
from tests.models.tiny_decoders import prompts, run, tiny

ROUNDING = 5e-6  # measured: 6e-7
of_prompt = jax.jit(
    lambda settings, model, cache: settings.of_prompt(model, cache), static_argnums=0
)


def without_mass(cache):
    """Every landmark as if it were one token."""
    one = lambda layer: dataclasses.replace(
        layer, log_mass=jnp.where(layer.log_mass > -jnp.inf, 0.0, -jnp.inf)
    )
    return Cache(tuple(map(one, cache.layers)), cache.position)


def test_a_repeated_token_is_as_if_all_were_there_by_its_mass():
    """At one position: the rotation makes other keys of a token that stands elsewhere."""
    model, (tokens, _) = tiny("qwen3"), prompts(padding=(0, 0))
    ones, together = np.ones((2, 9), bool), np.zeros((2, 9), int)
    read = jax.jit(lambda model, x: model(model.embed(x), key_mask=ones, positions=together)[1])
    cache = read(model, np.full((2, 9), 7))
    few = of_prompt(LandmarkCache("0:2", 3), model, cache)

    def distribution(cache):
        logits = run(model, tokens[:, :3], ones[:, :3], cache.with_room(3))[1]
        return jax.nn.softmax(logits, axis=-1)

    exact = distribution(cache)
    assert rel_max_error(distribution(few), exact) < 1e-5  # measured: 1e-6
    assert rel_max_error(distribution(without_mass(few)), exact) > 1e-2


def test_as_many_landmarks_as_tokens_change_nothing():
    model, (tokens, real) = tiny("qwen3"), prompts()
    _, _, cache = run(model, tokens, real)
    few = of_prompt(LandmarkCache("0,1", 9), model, cache)
    new, ones = tokens[:, :3], np.ones((2, 3), bool)
    exact, same = (run(model, new, ones, x.with_room(3))[0] for x in (cache, few))
    assert rel_max_error(same, exact) < ROUNDING
    coarse = of_prompt(LandmarkCache((1,), 2), model, cache)
    assert rel_max_error(run(model, new, ones, coarse.with_room(3))[0], exact) > 1e-3
    assert coarse.layers[0].key.shape[1] == 9


def test_the_bytes_are_those_of_the_landmarks():
    model, (tokens, real) = tiny("qwen3"), prompts()
    _, _, cache = run(model, tokens, real)
    few = of_prompt(LandmarkCache((1,), 2), model, cache)
    of_slot = 2 * 2 * 16 * 4 * 2  # keys and values, heads, channels, bytes, batch
    assert cache.num_bytes == 2 * 9 * of_slot
    assert few.num_bytes == (9 + 2) * of_slot


def test_padding_is_in_no_landmark():
    """A row alone, and with padding in front of it."""
    model, (tokens, real) = tiny("qwen3"), prompts()
    caches = [run(model, *x)[2] for x in ((tokens, real), (tokens[1:, 4:], real[1:, 4:]))]
    few = [of_prompt(LandmarkCache("0:2", 3), model, cache) for cache in caches]
    new, ones = tokens[:, :3], np.ones((2, 3), bool)
    together, _, _ = run(model, new, ones, few[0].with_room(3))
    alone, _, _ = run(model, new[1:], ones[1:], few[1].with_room(3))
    assert rel_max_error(together[1:], alone) < ROUNDING
    masses = np.exp(few[0].layers[0].log_mass).sum(axis=-1)
    np.testing.assert_allclose(masses, [9, 5], rtol=1e-6)


@pytest.mark.slow
def test_text_is_written_through_it():
    model, (tokens, real) = tiny("qwen3"), PROMPTS
    write = lambda settings: generate(
        model, model.embed(tokens), real, max_new_tokens=NUM_NEW, landmark_cache=settings
    )
    np.testing.assert_array_equal(write(LandmarkCache("0:2", 3)), write(None))
    assert (write(LandmarkCache("0:2", 1)) != write(None)).any()


@pytest.mark.parametrize(
    "kind, settings, words",
    [
        ("mistral", ((1,), 3), "sliding window of 5 tokens would end within"),
        ("llama", ((2,), 3), r"blocks 0 to 1, got layers \(2,\)"),
        ("llama", ((1,), 10), "num_landmarks=10 is more than the 9 tokens of the prompt"),
    ],
)
def test_what_it_cannot_stand_for_is_refused(kind, settings, words):
    model, (tokens, real) = tiny(kind), prompts()
    _, _, cache = run(model, tokens, real)
    with pytest.raises(ValueError, match=words):
        LandmarkCache(*settings).of_prompt(model, cache)
    with pytest.raises(ValueError, match="num_landmarks"):
        LandmarkCache((1,), 0)
