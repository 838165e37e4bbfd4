"""What tests of interventions and captures share: compiled calls, and blocks run by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import models
from fna_jax import FNAConfig
from models.attends import Attended
from models.detectors import ArtifactTokens, AttentionSinks, MassiveByAttention, MassiveByNorm
from tests.conftest import random_images
from tests.models.test_every_family import tiny

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
    embedded = jax.eval_shape(models.vision_tower(tiny(family)).embed, random_images())
    return np.random.default_rng(0).random(embedded.shape[:2]) < 0.3


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
