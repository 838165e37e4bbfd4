"""What is captured of models: outputs, norms, values and attention, as the blocks compute them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from fna_jax import Masking
from tests.conftest import random_images, rel_max_error
from tests.models.interventions import BLOCK, FNA, forward, tokens_of
from tests.models.test_every_family import FEW_FAMILIES, tiny


@FEW_FAMILIES
def test_what_is_captured_is_what_the_blocks_computed(family):
    capture = models.Capture(norms=True, outputs="0:2", values=(BLOCK,), attention=(0, BLOCK))
    per_head = dataclasses.replace(capture, per_head=True)

    @jax.jit
    def run(tower, images):
        runs = [tower(images, capture=asked) for asked in (None, capture, per_head)]
        states, block = tower.hidden_states(images), tower.encoder.blocks[BLOCK]
        # Attention times values is the attention's output.
        captured = runs[-1].captured
        heads, values = captured.attention[BLOCK], captured.values[BLOCK]
        out = jnp.einsum("bhij,bjhd->bihd", heads, values)
        x = states[BLOCK] + block.scale1(block.attention.out(out))
        return runs, states, x + block.scale2(block.mlp(block.norm2(x)))

    runs, states, by_hand = run(models.vision_tower(tiny(family)), random_images())
    plain, run, heads = runs
    np.testing.assert_array_equal(run.tokens, plain.tokens)
    captured = run.captured
    assert captured.outputs.keys() == {0, 1} and captured.values.keys() == {BLOCK}
    for block, output in captured.outputs.items():
        np.testing.assert_array_equal(output, states[block + 1])
    assert rel_max_error(captured.norms, np.linalg.norm(np.stack(states), axis=-1)) < 5e-6
    mean = np.mean(heads.captured.attention[BLOCK], axis=1)
    assert rel_max_error(captured.attention[BLOCK], mean) < 5e-6
    assert rel_max_error(captured.outputs[BLOCK], by_hand) < 5e-6


def test_captured_attention_is_that_after_the_intervention():
    tokens = tokens_of("clip")
    masked = models.with_interventions(tiny("clip"), {BLOCK: Masking("X->T", "mask")})
    capture = models.Capture(attention=(BLOCK,))
    attention = forward(masked, random_images(), tokens, capture).captured.attention[BLOCK]
    assert np.all(attention[np.broadcast_to(tokens[:, None], attention.shape)] == 0)
    np.testing.assert_allclose(attention.sum(-1), 1, rtol=1e-6)


def test_a_capture_may_observe_each_block():
    capture = models.Capture(observe=lambda seen: (seen.block, seen.mean_weights().sum()))
    observed = forward(tiny("vit"), random_images(), capture=capture).captured.observed
    assert {block: int(number) for block, (number, _) in observed.items()} == {0: 0, 1: 1}
    assert observed[0][1] == pytest.approx(2 * 17)  # every row sums to one


def test_a_block_with_fna_has_no_attention_to_observe():
    capture = models.Capture(observe=lambda seen: seen.weights())
    with pytest.raises(ValueError, match="forms no attention matrix"):
        forward(models.with_attention(tiny("clip"), FNA), random_images(), capture=capture)
