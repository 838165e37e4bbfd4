"""A linear head on patch features: the class of every patch, trained on frozen features."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm

from evals.data import IGNORED
from evals.tasks.segmentation.sliding import interpolation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearHead:
    """`logits = (features − mean) / std · kernel + bias`.

    Attributes:
      mean, std: `[C]`, of the features that it was trained on.
      kernel: `[C, K]`.
      bias: `[K]`.
    """

    mean: jax.Array
    std: jax.Array
    kernel: jax.Array
    bias: jax.Array

    @classmethod
    def untrained(cls, features, num_classes):
        """For features `[…, C]` like these: all logits are zero."""
        axes = tuple(range(features.ndim - 1))
        mean = features.mean(axis=axes, dtype=np.float64)
        std = features.std(axis=axes, dtype=np.float64)
        width = features.shape[-1]
        return cls(
            mean.astype(np.float32),
            np.maximum(std, 1e-6).astype(np.float32),
            np.zeros((width, num_classes), np.float32),
            np.zeros(num_classes, np.float32),
        )

    def __call__(self, features):
        """Logits float32 `[…, K]` of features `[…, C]`."""
        x = (features - self.mean) / self.std
        return jnp.matmul(x, self.kernel, precision="highest") + self.bias


def pixel_loss(head, features, labels):
    """Mean cross-entropy over the pixels that count, of logits interpolated to their size.

    Args:
      head: a `LinearHead`.
      features: `[B, h, w, C]`.
      labels: uint8 `[B, y, x]`, classes or `IGNORED`.
    """
    rows, columns = (interpolation(*sizes) for sizes in zip(features.shape[1:3], labels.shape[1:]))
    logits = jnp.einsum("yh,xw,bhwk->byxk", rows, columns, head(features))
    counted = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.where(counted, labels, 0).astype(jnp.int32)
    )
    return jnp.sum(losses * counted) / jnp.maximum(jnp.sum(counted), 1)


def train_head(head, minibatches, *, steps, rate, weight_decay) -> LinearHead:
    """The head after AdamW on `pixel_loss`, its rate falling to zero by a cosine.

    Args:
      head: to begin with.
      minibatches: yields at least `steps` pairs of features `[B, h, w, C]` and labels uint8
        `[B, y, x]`.
      steps, rate, weight_decay: of the optimiser.
    """
    optimiser = steps, rate, weight_decay
    learned = head.kernel, head.bias
    state = _adamw(*optimiser).init(learned)
    bar = tqdm.tqdm(range(steps), desc="segmentation head", leave=False, mininterval=1)
    for _, (features, labels) in zip(bar, minibatches):
        learned, state = _update(optimiser, head, learned, state, features, labels)
    return dataclasses.replace(head, kernel=np.asarray(learned[0]), bias=np.asarray(learned[1]))


def _adamw(steps, rate, weight_decay):
    return optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=weight_decay)


@functools.partial(jax.jit, static_argnums=0)
def _update(optimiser, head, learned, state, features, labels):
    """Kernel and bias, and the optimiser's state, after a step."""

    def loss(learned):
        kernel, bias = learned
        return pixel_loss(dataclasses.replace(head, kernel=kernel, bias=bias), features, labels)

    updates, state = _adamw(*optimiser).update(jax.grad(loss)(learned), state, learned)
    return optax.apply_updates(learned, updates), state
