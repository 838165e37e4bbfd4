"""Linear probe: logistic regression on frozen features, by DINOv2's recipe (arXiv 2304.07193)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from evals.data import Split
from evals.running.cache import data_digest
from evals.running.embed import Embedder
from evals.tasks.metrics import classification

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_BATCH, _MOMENTUM = 128, 0.9
_EPOCHS, _FEWEST_STEPS = 10, 5000
_HELD_OUT = 5  # one in so many training images, to choose the rate by
_fitted = {}


def linear_probe(backbone, data: Split, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `evals.tasks.metrics.classification`, and the learning rate chosen.

    The probe is trained on exact attention's features of `data.train`; those of `data.test` are the
    model's own.

    Args:
      backbone: an `evals.running.pretrained.Backbone`.
      data: labelled images to train on and to test with.
      embedder: how features are computed.
      rng: key of random landmarks, if the attention draws them.

    Raises:
      ValueError: fewer than two images to train on.
    """
    train = embedder.images(backbone.exact(), data.train.images, output="pooled")
    test = embedder.images(backbone, data.test.images, output="pooled", rng=rng)
    classes = data.test.class_names
    train_labels = data.train.take(train.rows).labels
    logits, rate = _fit_once(train.embeddings, train_labels, len(classes))
    labels = data.test.take(test.rows).labels
    record = classification(logits(test.embeddings), labels, classes)
    return {"task": "linear_probe", "learning_rate": rate} | record | test.times


def _fit_once(features, labels, num_classes):
    """`fit`, or what it gave the last time if that was for the same: the arms of a run share it."""
    key = data_digest([features, labels]), num_classes
    if key not in _fitted:
        _fitted.clear()
        _fitted[key] = fit(features, labels, num_classes)
    return _fitted[key]


def fit(features, labels, num_classes):
    """Logistic regression by the rate of `RATES` of least loss on a fifth of the images, held out.

    The head is then trained by that rate on all of them. Features are standardised first: the rates
    suit no other scale. They lie on the device as a whole.

    Args:
      features: float `[M, P]`.
      labels: int `[M]`, below num_classes.
      num_classes: K.

    Returns:
      A function of features that gives logits `[M, K]`, and the rate.

    Raises:
      ValueError: fewer than two images.
    """
    if len(features) < 2:
        raise ValueError(f"a linear probe needs two images to train on, got {len(features)}")
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    features = _standardise(features, mean, deviation)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out, kept = np.split(order, [-(-len(order) // _HELD_OUT)])
    heads = _train(features[kept], labels[kept], num_classes, RATES)
    losses = [_loss(_logits(head, features[held_out]), labels[held_out]) for head in heads]
    rate = RATES[np.nanargmin(losses)]
    (head,) = _train(features, labels, num_classes, [rate])
    return lambda x: _logits(head, _standardise(x, mean, deviation)), rate


def _standardise(features, mean, deviation):
    varies = deviation > 1e-5 * np.abs(mean)  # by more than rounding
    return (features - mean) / np.where(varies, deviation, 1)


def _logits(head, features):
    kernel, bias = head
    return features @ kernel + bias


def _loss(logits, labels):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def _train(features, labels, num_classes, rates):
    """A head (kernel `[P, K]`, bias `[K]`) for each rate, all trained at once."""
    rng = np.random.default_rng(0)
    size = min(_BATCH, len(labels))
    num_steps = max(_EPOCHS * len(labels) // size, _FEWEST_STEPS)
    epochs = -(-num_steps * size // len(labels))
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])
    steps = order[: num_steps * size].reshape(num_steps, size)
    kernels, biases = _descend(features, labels, steps, np.array(rates), num_classes=num_classes)
    return list(zip(np.asarray(kernels), np.asarray(biases)))


@functools.partial(jax.jit, static_argnames="num_classes")
def _descend(features, labels, steps, rates, *, num_classes):
    """Minibatch gradient descent with momentum and a cosine schedule; steps int `[T, B]`."""

    def loss_of(head, rows):
        return _loss(_logits(head, features[rows]), labels[rows])

    @jax.vmap
    def train(rate):
        optimiser = optax.sgd(optax.cosine_decay_schedule(rate, len(steps)), _MOMENTUM)

        def step(state, rows):
            head, memory = state
            updates, memory = optimiser.update(jax.grad(loss_of)(head, rows), memory)
            return (optax.apply_updates(head, updates), memory), None

        head = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
        (head, _), _ = jax.lax.scan(step, (head, optimiser.init(head)), steps)
        return head

    return train(rates)
