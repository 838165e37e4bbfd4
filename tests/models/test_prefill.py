"""Prompts that some layers read approximately: what is exact, what is causal, what is kept."""

import functools

import jax
import numpy as np
import pytest

from fna_jax import FNAConfig, fast_nystrom_attention, select_landmarks
from models.generation import generate, read_prompt
from models.image_tokens import ImageDropping
from models.landmark_cache import LandmarkCache
from models.prefill import CentroidPrefill, NystromPrefill, PrefillAttention
from tests.conftest import few, random_qkv, rel_max_error
from tests.models.test_generation import NUM_NEW, PROMPTS
from tests.models.tiny_decoders import SIZES, prompts, run, tiny

ROUNDING = 5e-6  # measured: 1e-6
RUNS, FNA = CentroidPrefill("1:2", 2), NystromPrefill((1,), 3)


@functools.partial(jax.jit, static_argnames=("prefill", "last_only"))
def read(model, tokens, real, prefill, last_only=False):
    return model(model.embed(tokens), key_mask=real, prefill=prefill, last_only=last_only)


@pytest.mark.slow
def test_runs_of_one_token_are_exact():
    model, (tokens, real) = tiny("qwen3"), prompts()
    exact, _, cache = run(model, tokens, real)
    hidden, same = read(model, tokens, real, CentroidPrefill("0:2", 1))
    assert rel_max_error(hidden[real], exact[real]) < ROUNDING
    assert rel_max_error(same.layers[1].key[real], cache.layers[1].key[real]) < ROUNDING
    np.testing.assert_array_equal(same.position, cache.position)


def test_with_runs_nothing_comes_from_the_future():
    model, (tokens, real) = tiny("qwen3"), prompts()
    prefill = CentroidPrefill("0:2", 2)
    hidden, _ = read(model, tokens, real, prefill)
    assert rel_max_error(hidden[real], run(model, tokens, real)[0][real]) > 1e-3
    later = np.where(np.arange(9) < 6, tokens, (tokens + 1) % SIZES["vocab_size"])
    after, _ = read(model, later, real, prefill)
    earlier = real & (np.arange(9) < 6)
    np.testing.assert_array_equal(hidden[earlier], after[earlier])


def test_a_layer_is_fna_by_landmarks_of_the_layer_before():
    query, key, value = random_qkv(tokens=9, heads=4, kv_heads=2)
    real = np.arange(9) >= np.array([[0], [4]])

    @jax.jit
    def both(query, key, value):
        first = PrefillAttention(FNA, real)(query[:, :, 0], query, key, value, ())
        moved = query[:, ::-1]
        second = PrefillAttention(FNA, real)(moved[:, :, 0], moved, key, value, first.landmarks)
        landmarks = select_landmarks(query.mean(axis=2), 3, exclude=~real)
        expected = [
            fast_nystrom_attention(q, key, value, landmarks, key_mask=real) for q in (query, moved)
        ]
        return (first.out, second.out), expected, first.record.kept

    outs, expected, kept = both(query, key, value)
    for out, formula in zip(outs, expected):
        assert rel_max_error(out[real], formula[real]) < ROUNDING
    np.testing.assert_array_equal(kept.key, key)
    np.testing.assert_array_equal(kept.log_mass, np.where(real, 0, -np.inf))


@pytest.mark.parametrize("prefill", few([FNA, RUNS]))
def test_the_cache_has_what_each_layer_projects_of_all_tokens(prefill):
    """Of the first approximate layer, too: what it reads is still exact."""
    model, (tokens, real) = tiny("qwen3"), prompts()
    exact, _, cache = run(model, tokens, real)
    hidden, same = read(model, tokens, real, prefill, last_only=True)
    assert hidden.shape == (2, 1, 32)
    for mine, layer in zip(same.layers, cache.layers):
        assert rel_max_error(mine.key, layer.key) < ROUNDING
        assert rel_max_error(mine.value, layer.value) < ROUNDING
    error = rel_max_error(hidden, exact[:, -1:])
    assert 1e-3 < error < 1


PADDED = [NystromPrefill("0:2", 3, resample=again) for again in (False, True)]


@pytest.mark.slow
@pytest.mark.parametrize("prefill", [*PADDED, CentroidPrefill("0:2", 2)])
def test_padding_and_companions_change_nothing(prefill):
    model, (tokens, real) = tiny("qwen2"), prompts()
    together, _ = read(model, tokens, real, prefill, last_only=True)
    alone, _ = read(model, tokens[1:, 4:], real[1:, 4:], prefill, last_only=True)
    assert rel_max_error(together[1:], alone) < ROUNDING


@pytest.mark.slow
def test_text_is_written_behind_it():
    """Also through landmarks; with runs of one token what is written is exact attention's."""
    model, (tokens, real) = tiny("qwen3"), PROMPTS
    write = lambda **how: generate(model, model.embed(tokens), real, max_new_tokens=NUM_NEW, **how)
    exact = write()
    runs = CentroidPrefill("0:2", 1)
    np.testing.assert_array_equal(write(prefill=runs), exact)
    through = write(prefill=runs, landmark_cache=LandmarkCache("0:2", 3))
    np.testing.assert_array_equal(through, exact)
    others = [write(prefill=prefill) for prefill in (NystromPrefill("0:2", 1), FNA)]
    assert any((other != exact).any() for other in others)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NystromPrefill((1,), 0), "num_landmarks must be an integer of at least 1, got 0"),
        (lambda: NystromPrefill((1,), 3, "p"), "features must be one of"),
        (lambda: NystromPrefill((), 3), "layers must be block indices"),
        (lambda: CentroidPrefill("2:1", 3), "layers must be block indices"),
        (lambda: CentroidPrefill((1,), 0), "run_length must be an integer of at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "kind, how, message",
    [
        ("llama", dict(prefill=NystromPrefill((2,), 3)), r"has blocks 0 to 1, got layers \(2,\)"),
        ("llama", dict(prefill=CentroidPrefill((2,), 3)), r"has blocks 0 to 1, got layers \(2,\)"),
        ("llama", dict(prefill=NystromPrefill((1,), 10)), r"must lie in 1\.\.9 \(the tokens\)"),
        ("llama", dict(prefill=FNAConfig((1,), 3)), "NystromPrefill or a .*, got FNAConfig"),
        ("mistral", dict(prefill=RUNS), "cannot honour a sliding window of 5 tokens"),
        ("mistral", dict(prefill=FNA), "cannot honour a sliding window of 5 tokens"),
    ],
)
def test_what_a_decoder_cannot_honour_is_refused(kind, how, message):
    model, (tokens, real) = tiny(kind), prompts()
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: read_prompt(model, model.embed(tokens), real, **how))


def test_states_that_mean_nothing_are_refused():
    model, (tokens, real) = tiny("llama"), prompts()
    embeddings = np.zeros((2, 9, 32), np.float32)
    dropping = ImageDropping(50, "attention", block=0).inside(real, tokens >= 0)
    for how, message in (
        (dict(prefill=FNA), "FNA is not causal, so that of all positions the last alone can"),
        (dict(dropping=dropping), "dropped tokens have no state, so that .* last_only=True"),
        (dict(prefill=RUNS, cache=model.init_cache(2, 20)), "a prompt that is read at once"),
    ):
        with pytest.raises(ValueError, match=message):
            model(embeddings, key_mask=real, **how)
