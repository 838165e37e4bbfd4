"""Interventions on models, against blocks that are run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import Masking, removed_entries, suppression_matrix
from models.detectors import AttentionSinks, MassiveByAttention, MassiveByNorm
from tests.conftest import few, random_images, rel_max_error
from tests.models.interventions import (
    BLOCK,
    DETECTORS,
    FNA,
    by_hand,
    detect,
    forward,
    last_output,
    run_capturing,
    tokens_of,
)
from tests.models.test_every_family import FAMILIES, TINY, tiny


@pytest.mark.parametrize(
    "family, masking",
    [("clip", Masking("~{T}->T", "mask"))]
    + few([(family, Masking("X->T", "sink")) for family in TINY], 2),
)
def test_a_masked_block_is_the_block_without_these_entries(family, masking):
    tokens = tokens_of(family)

    def weigh(weights):
        removed = removed_entries(tokens, masking.pattern)[:, None]
        weights = jnp.where(removed, 0, weights)
        if masking.mode == "sink":
            return weights
        return weights / jnp.sum(weights, axis=-1, keepdims=True)

    masked = models.with_interventions(tiny(family), {BLOCK: masking})
    run = run_capturing(masked, tokens=tokens)
    output = run.captured.outputs[BLOCK]
    assert rel_max_error(output, by_hand(family, weigh)) < 5e-6
    assert rel_max_error(output, last_output(tiny(family))) > 1e-3  # it does something
    np.testing.assert_array_equal(run.masked, tokens)


@pytest.mark.parametrize("family", ["clip", "dinov2"])  # without and with LayerScale
def test_cancelled_suppression_is_the_block_with_the_correction(family):

    def correct(x, weights, value, block):
        lost = jnp.maximum(-suppression_matrix(x, value, block.out_kernel()), 0)
        unit = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
        return unit * jnp.einsum("bhij,bhij->bi", weights, lost)[..., None]

    cancelled = models.with_interventions(tiny(family), {BLOCK: models.CancelSuppression()})
    expected = by_hand(family, lambda weights: weights, correct=correct)
    assert rel_max_error(last_output(cancelled), expected) < 5e-6
    assert rel_max_error(last_output(cancelled), last_output(tiny(family))) > 1e-5


@FAMILIES
def test_the_out_kernel_is_what_a_head_writes(family):
    block = models.vision_tower(tiny(family)).encoder.blocks[BLOCK]
    out = np.random.default_rng(0).standard_normal((1, 3, 2, 16)).astype(np.float32)

    @nnx.jit
    def written(block, out):
        write = lambda out: block.scale1(block.attention.out(out))
        return write(out) - write(0 * out), block.out_kernel()

    linear, kernel = map(np.asarray, written(block, out))
    assert rel_max_error(linear, np.einsum("bnhd,hdc->bnc", out, kernel)) < 5e-6


@pytest.mark.parametrize(
    "detector", few(DETECTORS, 2), ids=lambda detector: type(detector).__name__
)
@pytest.mark.parametrize("family", ["clip", "siglip"])  # with and without a class token
def test_an_adaptive_model_is_two_passes(family, detector):
    """The second pass, in a model without a detector, is given what `detect` finds."""
    interventions = {BLOCK: Masking("X->T", "sink")}
    adaptive = models.with_interventions(tiny(family), interventions, detector=detector)
    given = models.with_interventions(tiny(family), interventions)
    tokens = detect(tiny(family), random_images(), detector)
    assert 0 < tokens.sum() < tokens.size
    output = forward(adaptive, random_images())
    np.testing.assert_array_equal(output.masked, tokens)
    expected = forward(given, random_images(), tokens)
    assert rel_max_error(output.tokens, expected.tokens) < 5e-6


@pytest.mark.parametrize("family", few(["dinov2", "dinov3"]))
def test_detection_sees_the_attention_that_the_model_has(family):
    """In front of the intervention and after it, with registers and with rotary positions."""
    capture = models.Capture(attention=(0, BLOCK))
    attention = forward(tiny(family), random_images(), capture=capture).captured.attention
    for block in (0, BLOCK):
        row = np.asarray(attention[block][:, 0])
        expected = row / row[:, :1] > 0.9
        expected[:, : tiny(family).num_prefix] = False
        detector = MassiveByAttention(block, threshold=0.9)
        found = detect(tiny(family), random_images(), detector)
        np.testing.assert_array_equal(found, expected)
        masked = models.with_interventions(tiny(family), {0: Masking()}, detector=detector)
        np.testing.assert_array_equal(forward(masked, random_images()).masked, expected)


def test_attention_switched_off_leaves_the_bias():
    """Of the output projection, which is no attention."""
    off = models.with_interventions(tiny("clip"), {BLOCK: Masking("X->X", "mask")})
    expected = by_hand("clip", lambda weights: 0 * weights)
    assert rel_max_error(last_output(off), expected) < 5e-6


def test_no_intervention_is_the_model():
    masked = models.with_interventions(tiny("vit"), {BLOCK: Masking("X->X")})
    restored = models.with_interventions(masked, {})
    assert rel_max_error(last_output(masked), last_output(tiny("vit"))) > 1e-3
    np.testing.assert_array_equal(last_output(restored), last_output(tiny("vit")))


def test_gradients_pass_an_adaptive_model():
    adaptive = models.with_interventions(
        tiny("clip"), {BLOCK: Masking("X->T", "mask")}, detector=DETECTORS[2]
    )
    loss = lambda model: jnp.sum(jnp.square(model.vision(random_images()).tokens))
    for path, gradient in nnx.to_flat_state(nnx.jit(nnx.grad(loss))(adaptive)):
        assert np.isfinite(gradient[...]).all(), path


TOKENS = np.zeros((2, 17), bool)
SINK = {BLOCK: Masking()}
MISTAKES = {
    "blocks 0 to 1, got 2": lambda m: models.with_interventions(m, {2: Masking()}),
    "blocks 0 to 1, got True": lambda m: models.with_interventions(m, {True: Masking()}),
    "blocks 0 to 1, got 9": lambda m: models.detect(m, random_images(), MassiveByNorm(9)),
    "blocks 0 to 1, got 7": lambda m: m(random_images(), capture=models.Capture(values=(7,))),
    "expected {block": lambda m: models.with_interventions(m, [Masking()]),
    "got 'X->T'": lambda m: models.with_interventions(m, {0: "X->T"}),
    "expected a detector": lambda m: models.with_interventions(m, SINK, detector="sinks"),
    "no intervention speaks of any": lambda m: models.with_interventions(
        m, {0: Masking("X->X")}, detector=MassiveByNorm(0)
    ),
    "first_block must lie in 0..0": lambda m: AttentionSinks(1, 0),
    "the block which decides, got -1": lambda m: AttentionSinks(-1, 0),
    "call it with tokens": lambda m: models.with_interventions(m, SINK)(random_images()),
    "speaks of any": lambda m: m(random_images(), tokens=TOKENS),
    "this view's detector finds them": lambda m: models.with_interventions(
        m, SINK, detector=MassiveByNorm(0)
    )(random_images(), tokens=TOKENS),
    r"tokens must be bool\[2, 17\]": lambda m: models.with_interventions(m, SINK)(
        random_images(), tokens=TOKENS[:1]
    ),
    "FNA cannot remove the entries 'T->T'": lambda m: models.with_interventions(
        models.with_attention(m, FNA), {BLOCK: Masking("T->T")}
    ),
    "runs FNA, which forms no attention matrix to cancel": lambda m: models.with_attention(
        models.with_interventions(m, {BLOCK: models.CancelSuppression()}), FNA
    ),
    r"blocks \[1\] run FNA": lambda m: models.with_attention(m, FNA)(
        random_images(), capture=models.Capture(attention="0:2")
    ),
    "outputs must be block indices": lambda m: models.Capture(outputs="a"),
    "attention must be block indices": lambda m: models.Capture(attention=0),
    "per_head=True is about attention": lambda m: models.Capture(per_head=True),
    "max_sinks must be at least 1": lambda m: AttentionSinks(0, 1, 0),
    "expected a detector of models.detectors, got 'norm'": lambda m: models.detect(
        m, random_images(), "norm"
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_sentence(message):
    model = tiny("clip")
    with pytest.raises((ValueError, TypeError), match=message) as error:
        jax.eval_shape(lambda: MISTAKES[message](model))
    assert "\n" not in str(error.value)
