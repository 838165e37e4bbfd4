"""k-nearest neighbours: classes by the weighted votes of the likest images (DINO §4.1)."""

import jax
import jax.numpy as jnp
import numpy as np

from evals.data import Split
from evals.running.embed import Embedder, unit
from evals.tasks.metrics import classification, true_class_rank

NEIGHBOURS, HEADLINE = (10, 20, 100, 200), 20
_TEMPERATURE = 0.07
_QUERIES, _GALLERY = 2048, 4096  # rows of each that are compared at a time


def knn(backbone, data: Split, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `evals.tasks.metrics.classification` by neighbours, and `top1_of_k`.

    The gallery is exact attention's features of `data.train`; the queries are the model's own of
    `data.test`. Where the gallery is smaller than a k, all of it votes, and k is its size.

    Args:
      backbone: an `evals.running.pretrained.Backbone`.
      data: labelled images, a gallery and queries.
      embedder: how features are computed.
      rng: key of random landmarks, if the attention draws them.
    """
    gallery = embedder.images(backbone.exact(), data.train.images, output="pooled")
    queries = embedder.images(backbone, data.test.images, output="pooled", rng=rng)
    classes, labels = data.test.class_names, data.test.take(queries.rows).labels
    most = min(max(NEIGHBOURS), len(gallery.rows))
    cosines, rows = nearest(unit(queries.embeddings), unit(gallery.embeddings), most)
    neighbours = data.train.take(gallery.rows).labels[rows]
    headline = min(HEADLINE, most)
    by = lambda k: votes(cosines[:, :k], neighbours[:, :k], len(classes))
    top1_of_k = {
        str(k): float(100 * np.mean(true_class_rank(by(k), labels) < 1))
        for k in sorted({min(k, most) for k in NEIGHBOURS})
    }
    record = {"task": "knn", "k": headline, "top1_of_k": top1_of_k}
    return record | classification(by(headline), labels, classes) | queries.times


def votes(cosines, neighbours, num_classes):
    """Shares of the vote `[M, K]`: a neighbour of class c adds `exp(cosine / 0.07)` to c.

    Args:
      cosines: float `[M, k]`.
      neighbours: int `[M, k]`, the classes of the neighbours.
      num_classes: K.
    """
    weights = np.exp((cosines - cosines.max(axis=1, keepdims=True)) / _TEMPERATURE)
    sums = np.zeros((len(cosines), num_classes), weights.dtype)
    np.add.at(sums, (np.arange(len(cosines))[:, None], neighbours), weights)
    return sums / weights.sum(axis=1, keepdims=True)


def nearest(queries, gallery, k):
    """The k rows of the gallery with the largest products, block by block, largest first.

    Of equal ones the first in the gallery come first.

    Args:
      queries: float `[M, P]`.
      gallery: float `[G, P]`, in memory of the host.
      k: at most G.

    Returns:
      Products, float32 `[M, k]`, and rows of the gallery, int `[M, k]`.
    """
    found = []
    for first in range(0, len(queries), _QUERIES):
        block = jnp.asarray(queries[first : first + _QUERIES], jnp.float32)
        best = jnp.full((len(block), k), -jnp.inf), jnp.full((len(block), k), -1)
        for start in range(0, len(gallery), _GALLERY):
            best = _merge(block, best, gallery[start : start + _GALLERY], start)
        found.append(best)
    cosines, rows = zip(*jax.device_get(found))
    return np.concatenate(cosines), np.concatenate(rows)


@jax.jit
def _merge(queries, best, gallery, start):
    """The best products and rows, of those so far and of a block of the gallery from `start` on."""
    products, rows = best
    k = products.shape[1]
    new = jnp.matmul(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)
    new_products, new_rows = jax.lax.top_k(new, min(k, new.shape[1]))
    products, chosen = jax.lax.top_k(jnp.concatenate([products, new_products], axis=1), k)
    rows = jnp.concatenate([rows, new_rows + start], axis=1)
    return products, jnp.take_along_axis(rows, chosen, axis=1)
