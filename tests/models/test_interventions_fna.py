"""Interventions and detectors on models with FNA."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import models
from fna_jax import FNAConfig, Masking
from models.attends import ApproximateAttention
from models.detectors import MassiveByAttention
from tests.conftest import few, random_images, rel_max_error
from tests.models.interventions import BLOCK, FNA, compare, detect, forward, last_output, tokens_of
from tests.models.test_every_family import tiny


@pytest.mark.parametrize("mode", few(["mask", "sink"]))
def test_fna_honours_removed_columns(mode):
    """With every token not in T a landmark and a converged inverse it is masked exact attention."""
    tokens, fna = tokens_of("clip").copy(), FNAConfig((BLOCK,), 17, inverse_steps=20)
    tokens[:, 0] = False
    masked = models.with_interventions(tiny("clip"), {BLOCK: Masking("X->T", mode)})
    both = models.with_attention(masked, fna)
    # In mode "sink" the rows of T pay T itself, and are not exact.
    expected, output = (last_output(view, tokens=tokens)[~tokens] for view in (masked, both))
    assert rel_max_error(output, expected) < 1e-3  # inverse, float32
    result = compare(both, random_images(), tokens)
    assert not np.take_along_axis(tokens, np.asarray(result.landmarks.indices), 1).any()
    if mode == "mask":
        assert np.all(result.attention_error < 1e-3)  # of masked FNA against masked exact


@pytest.mark.parametrize("exclude", ["massive_by_norm", "massive_by_attention"])
def test_fna_excludes_massive_tokens_from_the_landmarks(exclude):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 24, 8)).astype(np.float32)
    query, key = rng.standard_normal((2, 2, 24, 1, 8)).astype(np.float32)
    massive = np.zeros((2, 24), bool)
    massive[0, [5, 11]] = massive[1, 7] = True
    x[massive] *= 30
    query[:, 0] = key[:, 0] = 0.1  # the class token attends to all alike, but to the massive ones
    key[massive] = 30
    config = FNAConfig((0,), 12, features="input", exclude=exclude)

    @functools.partial(jax.jit, static_argnums=0)
    def run(config, x, query, key):
        attend = ApproximateAttention(config, 0, (4, 4), 1, None, False)
        excluded = attend.excluded(x, query, key) if config.exclude else None
        return excluded, attend.select(x, query, key, None).indices

    excluded, chosen = run(config, x, query, key)
    np.testing.assert_array_equal(excluded & massive, massive)
    if exclude == "massive_by_norm":
        np.testing.assert_array_equal(excluded, massive)
    assert not np.take_along_axis(massive, np.asarray(chosen), axis=1).any()
    _, chosen = run(dataclasses.replace(config, exclude=None), x, query, key)
    assert np.take_along_axis(massive, np.asarray(chosen), axis=1).sum() == 3  # they lie far out


def test_detectors_see_exact_attention_also_below_fna():
    detector = MassiveByAttention(BLOCK, threshold=1.0)
    adaptive = models.with_interventions(tiny("clip"), {BLOCK: Masking()}, detector=detector)
    view = models.with_attention(adaptive, FNAConfig((0,), 6))
    expected = detect(tiny("clip"), random_images(), detector)
    np.testing.assert_array_equal(forward(view, random_images()).masked, expected)
    np.testing.assert_array_equal(detect(view, random_images(), detector), expected)


def test_landmarks_for_later_blocks_leave_out_what_these_do_not_read():
    tokens = tokens_of("clip").copy()
    tokens[:, 0] = False  # the class token is a landmark in any case
    masked = models.with_interventions(tiny("clip"), {BLOCK: Masking("X->T", "mask")})
    landmarks = forward(models.with_attention(masked, FNAConfig("0:2", 8)), random_images(), tokens)
    landmarks = landmarks.landmarks
    assert np.all(landmarks.valid)
    assert not np.take_along_axis(tokens, np.asarray(landmarks.indices), axis=1).any()


def test_what_is_zero_in_both_is_no_error():
    off = models.with_interventions(tiny("clip"), {BLOCK: Masking("X->X")})
    error = compare(models.with_attention(off, FNA), random_images()).attention_error
    np.testing.assert_array_equal(error, np.zeros((1, 2)))


def test_exclusion_by_attention_needs_a_class_token():
    fna = dataclasses.replace(FNA, exclude="massive_by_attention")
    with pytest.raises(ValueError, match="needs a class token"):
        models.with_attention(tiny("siglip"), fna)
