"""Detectors, interventions and captures on a model whose massive and artifact tokens are known."""

import jax
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import Masking, suppression_matrix
from models.detectors import ArtifactTokens, AttentionSinks, MassiveByAttention, MassiveByNorm
from tests.conftest import rel_max_error
from tests.planted import (
    DEPTH,
    GROW,
    GROWN_TO,
    SINK,
    SINK_HEAD,
    SUPPRESS,
    TAKEN,
    planted_images,
    planted_model,
)

MANY = planted_images(seed=1, batch=1000)
FEW = planted_images(seed=2, batch=50)
SINKS = AttentionSinks(SUPPRESS, SINK)
DETECTORS = {
    "by attention": MassiveByAttention(SINK),
    "by norm": MassiveByNorm(SUPPRESS),
    "by norm, too early": MassiveByNorm(GROW),
    "artifacts": ArtifactTokens(SINKS, MassiveByAttention(SINK)),
    "sinks masked too late": AttentionSinks(SINK, SINK),
}


@nnx.jit
def detections(model, images):
    """The token sets of all detectors, and the ranks of the sinks."""
    found = {name: models.detect(model, images, detector) for name, detector in DETECTORS.items()}
    return found, SINKS.ranks(model, model.embed(images), images, 0)


@nnx.jit(static_argnames="capture")
def run(view, images, tokens=None, *, capture=None):
    return view(images, tokens=tokens, capture=capture)


@pytest.fixture(scope="module")
def model():
    return planted_model()


@pytest.fixture(scope="module")
def plain(model):
    """What is captured of the FEW images without interventions."""
    capture = models.Capture(norms=True, outputs=(GROW,), values=(SUPPRESS,), attention=(SINK,))
    return jax.device_get(run(model, FEW.images, capture=capture).captured)


def norms(view):
    """Of the FEW images' massive tokens, `[1 + blocks, tokens]`."""
    captured = run(view, FEW.images, capture=models.Capture(norms=True)).captured
    return np.asarray(captured.norms)[:, FEW.massive]


def from_suppress_on(model, masking):
    """The model with a masking in SUPPRESS and all blocks after it."""
    blocks = range(SUPPRESS, DEPTH)
    return models.with_interventions(model, {block: masking for block in blocks})


def proxy(attention):
    """`a[cls→i] / a[cls→cls]` of attention averaged over heads, `[B, N]`."""
    return attention[:, 0] / attention[:, 0, :1]


def test_detectors_find_exactly_what_is_planted(model):
    found, ranks = detections(model, MANY.images)
    assert np.min(np.bincount(MANY.massive.sum(axis=1), minlength=4)) > 100  # none to three
    np.testing.assert_array_equal(found["by attention"], MANY.massive)
    np.testing.assert_array_equal(found["by norm"], MANY.massive)
    np.testing.assert_array_equal(found["artifacts"], MANY.artifact)
    np.testing.assert_array_equal(ranks, MANY.order)
    assert not np.any(found["by norm, too early"])
    # Masked after they have suppressed the artifacts, massive tokens have no successors.
    np.testing.assert_array_equal(found["sinks masked too late"], MANY.massive)


def test_detectors_find_nothing_without_the_plant():
    found, _ = detections(planted_model(planted=False), MANY.images)
    for name, tokens in found.items():
        assert not np.any(tokens), name


def test_norms_explode_in_one_block(plain):
    growth = np.array(plain.norms[1:] / plain.norms[:-1])  # [blocks, B, N]
    assert np.min(growth[GROW, FEW.massive]) > 20
    growth[GROW, FEW.massive] = 0
    assert np.max(growth) < 3


def test_the_mlp_makes_massive_tokens_and_attention_restrains_them(model, plain):
    gained = norms(from_suppress_on(model, Masking("X->X"))) - plain.norms[:, FEW.massive]
    assert np.max(np.abs(gained[: SUPPRESS + 1])) < 1e-3
    np.testing.assert_allclose(gained[SUPPRESS + 1 :], TAKEN[0], rtol=0.1)  # other channels shrink


def test_cancelling_suppression_leaves_massive_tokens_as_large_as_they_were(model, plain):
    view = models.with_interventions(model, {SUPPRESS: models.CancelSuppression()})
    before, after = plain.norms[SUPPRESS : SUPPRESS + 2, FEW.massive]
    assert np.max(after / before) < 0.995
    np.testing.assert_allclose(norms(view)[SUPPRESS + 1], before, rtol=1e-3)


def test_artifacts_take_over_once_massive_tokens_are_masked(model, plain):
    images, massive, artifact, order = FEW
    view = from_suppress_on(model, Masking("X->T", "mask"))
    capture = models.Capture(norms=True, attention=(SINK,))
    masked = jax.device_get(run(view, images, massive, capture=capture).captured)
    first = artifact & (order == 1 + np.sum(massive, axis=1, keepdims=True))
    assert np.max(plain.norms[-1][artifact]) < 20
    assert np.min(masked.norms[-1][artifact]) > 0.9 * GROWN_TO
    assert np.max(proxy(plain.attention[SINK])[artifact]) < 0.3
    assert np.min(proxy(masked.attention[SINK])[first]) > 1
    assert np.all(proxy(masked.attention[SINK])[massive] == 0)


def test_massive_and_artifact_tokens_suppress_each_other(model, plain):
    kernel = model.encoder.blocks[SUPPRESS].out_kernel()
    matrix = jax.jit(suppression_matrix)(plain.outputs[GROW], plain.values[SUPPRESS], kernel)
    matrix = np.asarray(matrix[:, SINK_HEAD])
    pairs = lambda i, j: matrix[i[:, :, None] & j[:, None, :]]
    marked = FEW.massive | FEW.artifact
    assert np.max(pairs(marked, marked)) < -0.5
    assert np.max(np.abs(pairs(~marked, ~marked))) < 0.5
    np.testing.assert_allclose(pairs(FEW.massive, FEW.massive), -TAKEN[0], rtol=0.02)


IN_FRONT_OF_DETECTION = {SUPPRESS: Masking("X->T", "mask")}


@pytest.mark.parametrize(
    "interventions, name, tokens",
    [
        (IN_FRONT_OF_DETECTION, "by attention", FEW.massive),
        ({SUPPRESS: Masking("T->X"), SINK: Masking()}, "artifacts", FEW.artifact),
    ],
    ids=["massive", "artifact"],
)
def test_the_adaptive_model_is_the_two_passes_by_hand(model, interventions, name, tokens):
    detector = DETECTORS[name]
    adaptive = models.with_interventions(model, interventions, detector=detector)
    output = run(adaptive, FEW.images)
    expected = run(models.with_interventions(model, interventions), FEW.images, tokens)
    np.testing.assert_array_equal(output.masked, tokens)
    assert rel_max_error(output.tokens, expected.tokens) < 1e-6


def test_the_adaptive_model_carries_nothing_from_one_batch_to_the_next(model):
    adaptive = models.with_interventions(
        model, IN_FRONT_OF_DETECTION, detector=DETECTORS["by attention"]
    )
    together = run(adaptive, FEW.images)
    for part in (slice(0, 4), slice(4, 8), slice(0, 4)):
        output = jax.jit(lambda images: adaptive(images))(FEW.images[part])  # traced anew
        np.testing.assert_array_equal(output.masked, together.masked[part])
        assert rel_max_error(output.tokens, together.tokens[part]) < 1e-6
