"""FNA with tokens and slots that must carry no weight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import Landmarks, fast_nystrom_attention
from tests.conftest import few, random_qkv, rel_max_error
from tests.fna_jax.formulas import LANDMARKS, brute_force_fna, fna, key_value


@pytest.mark.parametrize("filler", [0.0, np.nan, 1e30, np.inf])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_padding_changes_nothing_on_real_tokens(filler, kv_heads):
    qkv = random_qkv(kv_heads=kv_heads)
    num_real = [30, 40]
    mask = np.arange(40) < np.array(num_real)[:, None]
    padded = tuple(np.where(mask[..., None, None], x, np.float32(filler)) for x in qkv)
    for landmarks in (LANDMARKS, Landmarks.from_indices(LANDMARKS)):  # 38 points at padding
        output = np.asarray(fna(*padded, landmarks, key_mask=mask))
        assert np.isfinite(output).all()
        for b in range(2):
            real = tuple(x[b : b + 1, : num_real[b]] for x in qkv)
            chosen = LANDMARKS[b][LANDMARKS[b] < num_real[b]][None]
            expected = brute_force_fna(*real, chosen)[0]
            assert rel_max_error(output[b, : num_real[b]], expected) < 5e-6


@pytest.mark.parametrize("filler", few([0.0, np.nan], [np.nan]))
def test_gradient_with_padding_is_that_without(filler):
    qkv = random_qkv()
    mask = np.broadcast_to(np.arange(40) < 30, (2, 40))
    padded = tuple(np.where(mask[..., None, None], x, np.float32(filler)) for x in qkv)

    def loss(*qkv, key_mask=None, landmarks=LANDMARKS):
        output = fast_nystrom_attention(*qkv, landmarks, key_mask=key_mask)
        return jnp.sum(jnp.sin(output[:, :30]))

    gradients = jax.jit(jax.grad(functools.partial(loss, key_mask=mask), (0, 1, 2)))(*padded)
    kept = np.where(LANDMARKS < 30, LANDMARKS, -1)
    expected = jax.jit(jax.grad(functools.partial(loss, landmarks=kept), (0, 1, 2)))(
        *(x[:, :30] for x in qkv)
    )
    for gradient, alone in zip(gradients, expected):
        assert rel_max_error(gradient[:, :30], alone) < 4e-6
        np.testing.assert_array_equal(gradient[:, 30:], 0)


def test_invalid_slots_are_fewer_landmarks():
    qkv = random_qkv()
    valid = np.array([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 0, 0]], bool)
    output = fna(*qkv, Landmarks(jnp.where(valid, LANDMARKS, 0), jnp.asarray(valid)))
    negative = fna(*qkv, np.where(valid, LANDMARKS, -1))
    np.testing.assert_array_equal(output, negative)
    for b in range(2):
        alone = brute_force_fna(*(x[b : b + 1] for x in qkv), LANDMARKS[b : b + 1, valid[b]])
        assert rel_max_error(output[b], alone[0]) < 5e-6


def test_empty_slots_have_zero_values():
    qkv = random_qkv()
    holes = np.where(np.arange(6) % 2, LANDMARKS, -1)
    _, landmark_value = key_value(*qkv, holes)
    np.testing.assert_array_equal(landmark_value[:, ::2], 0)


def test_a_row_without_landmarks_is_zero():
    qkv = random_qkv()
    landmarks = np.where([[False], [True]], LANDMARKS, -1)
    output = fna(*qkv, landmarks)
    np.testing.assert_array_equal(output[0], 0)
    assert rel_max_error(output[1], fna(*qkv, LANDMARKS)[1]) < 1e-6
    masked = fna(*qkv, LANDMARKS, key_mask=np.broadcast_to([[False], [True]], (2, 40)))
    np.testing.assert_array_equal(masked[0], 0)
