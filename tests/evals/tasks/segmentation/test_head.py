import itertools

import jax
import numpy as np
import optax
import pytest

from evals.data import IGNORED
from evals.tasks.segmentation.head import LinearHead, pixel_loss, train_head

K, SIDE = 3, 8
logits_of = jax.jit(lambda head, features: head(features))


def trained(features, labels, **settings):
    settings = dict(steps=60, rate=0.1, weight_decay=0.0) | settings
    head = LinearHead.untrained(features, K)
    return train_head(head, itertools.repeat((features, labels)), **settings)


def random_head(width, seed=0):
    draw = np.random.default_rng(seed).standard_normal
    scales = np.float32([draw(width), np.abs(draw(width)) + 0.5])
    return LinearHead(*scales, np.float32(draw((width, K))), np.float32(draw(K)))


def test_separable_features_are_told_apart():
    labels = np.random.default_rng(0).integers(0, K, (4, SIDE, SIDE), dtype=np.uint8)
    features = 100 * np.eye(K, dtype=np.float32)[labels] - 7  # of any scale
    logits = np.asarray(logits_of(trained(features, labels), features))
    np.testing.assert_array_equal(np.argmax(logits, axis=-1), labels)


def test_features_that_say_nothing_give_the_most_frequent_class():
    labels = np.zeros((2, SIDE, SIDE), np.uint8)
    labels[:, :5] = 2
    labels[:, 5:7] = IGNORED
    features = np.full((2, SIDE // 2, SIDE // 2, 5), 3, np.float32)
    head = trained(features, labels, steps=100, rate=0.3)
    logits, odds = np.asarray(logits_of(head, features)), np.exp(np.asarray(head.bias))
    assert np.all(np.argmax(logits, axis=-1) == 2)
    # The frequencies, as cross-entropy has it.
    np.testing.assert_allclose(odds / odds.sum(), [1 / 6, 0, 5 / 6], atol=5e-3)


def test_the_loss_is_the_mean_over_the_pixels_that_count():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 4, 3, 6)).astype(np.float32)
    labels = rng.integers(0, K, (2, 10, 9), dtype=np.uint8)
    ignored = rng.random(labels.shape) < 0.5
    head = random_head(6)

    @jax.jit
    def losses_of(head, features, labels):
        logits = jax.image.resize(head(features), (2, 10, 9, K), "linear", antialias=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels.astype(int))

    losses = np.asarray(losses_of(head, features, labels))
    loss = jax.jit(pixel_loss)(head, features, np.where(ignored, IGNORED, labels).astype(np.uint8))
    np.testing.assert_allclose(loss, np.mean(losses[~ignored]), rtol=1e-6)


def test_batches_without_any_class_change_nothing():
    features = np.random.default_rng(0).standard_normal((2, 4, 4, 6)).astype(np.float32)
    labels = np.full((2, SIDE, SIDE), IGNORED, np.uint8)
    gradients = jax.jit(jax.grad(pixel_loss))(random_head(6), features, labels)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(gradients)))


@pytest.mark.parametrize("scale, shift", [(1000, 0), (0.01, -5)])
def test_each_channel_is_standardised(scale, shift):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 4, 4, 6)).astype(np.float32)
    labels = rng.integers(0, K, (2, SIDE, SIDE), dtype=np.uint8)
    other = (features * scale + shift).astype(np.float32)
    logits = [logits_of(trained(x, labels, steps=5), x) for x in (features, other)]
    np.testing.assert_allclose(*logits, atol=1e-3)  # the shift costs digits: 2e-4
