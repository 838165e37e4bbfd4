"""Interventions and captures on models, against blocks that are run by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig, Masking, removed_entries, suppression_matrix
from models.attends import ApproximateAttention, Attended
from models.detectors import ArtifactTokens, AttentionSinks, MassiveByAttention, MassiveByNorm
from tests.conftest import random_images, rel_max_error
from tests.models.test_every_family import FAMILIES, TINY, tiny

BLOCK = 1  # of two, where the interventions are
FNA = FNAConfig((BLOCK,), 8)
DETECTORS = [  # thresholds that find something in random models
    MassiveByAttention(BLOCK, threshold=1.0),
    MassiveByNorm(BLOCK, min_ratio=1.001),
    AttentionSinks(0, BLOCK, max_sinks=5),
    ArtifactTokens(AttentionSinks(0, BLOCK, max_sinks=5), MassiveByAttention(BLOCK, threshold=3.0)),
]


@functools.partial(jax.jit, static_argnames="capture")
def forward(model, images, tokens=None, capture=None):
    return model(images, tokens=tokens, capture=capture)


@jax.jit
def compare(model, images, tokens=None):
    return model(images, tokens=tokens, compare=True)


detect = jax.jit(models.detect, static_argnums=2)


@functools.cache
def tokens_of(family):
    """A token set of two images, prefix tokens among them."""
    shape = models.vision_tower(tiny(family)).embed(random_images()).shape[:2]
    return np.random.default_rng(0).random(shape) < 0.3


def by_hand(family, weigh, *, correct=None):
    """The output of the last block, with an attention matrix that `weigh` makes of the plain one.

    `weigh` takes and gives float32 `[B, H, N, N]`.
    """

    @jax.jit
    def run(tower, images):
        block = tower.encoder.blocks[BLOCK]

        def attend(x, query, key, value, landmarks):
            logits = jnp.einsum("bihd,bjhd->bhij", query, key) * query.shape[-1] ** -0.5
            weights = weigh(jax.nn.softmax(logits, axis=-1))
            out = jnp.einsum("bhij,bjhd->bihd", weights, value)
            correction = correct and correct(x, weights, value, block)
            return Attended(out, landmarks, correction)

        x = tower.hidden_states(images)[BLOCK]
        (attend,) = tower.position_attends([attend], images)
        return block(x, None, attend)[0]

    return run(models.vision_tower(tiny(family)), random_images())


def run_capturing(model, **options):
    """The model's output, with that of the last block among what is captured."""
    return forward(model, random_images(), capture=models.Capture(outputs=(BLOCK,)), **options)


def last_output(model, **options):
    return run_capturing(model, **options).captured.outputs[BLOCK]


@pytest.mark.parametrize(
    "family, masking",
    [(family, Masking("X->T", "sink")) for family in TINY] + [("clip", Masking("~{T}->T", "mask"))],
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
    linear = block.scale1(block.attention.out(out)) - block.scale1(block.attention.out(0 * out))
    expected = np.einsum("bnhd,hdc->bnc", out, block.out_kernel())
    assert rel_max_error(linear, expected) < 5e-6


@pytest.mark.parametrize("detector", DETECTORS, ids=lambda detector: type(detector).__name__)
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


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
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


@FAMILIES
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


@pytest.mark.parametrize("mode", ["mask", "sink"])
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


def test_a_block_with_fna_has_no_attention_to_observe():
    capture = models.Capture(observe=lambda seen: seen.weights())
    with pytest.raises(ValueError, match="forms no attention matrix"):
        forward(models.with_attention(tiny("clip"), FNA), random_images(), capture=capture)


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
    with pytest.raises((ValueError, TypeError), match=message) as error:
        jax.eval_shape(lambda: MISTAKES[message](tiny("clip")))
    assert "\n" not in str(error.value)


def test_exclusion_by_attention_needs_a_class_token():
    fna = dataclasses.replace(FNA, exclude="massive_by_attention")
    with pytest.raises(ValueError, match="needs a class token"):
        models.with_attention(tiny("siglip"), fna)
