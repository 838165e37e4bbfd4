"""Embeddings of images and texts in batches, with honest times."""

import dataclasses
import functools
import time

import jax
import numpy as np
import tqdm
from flax import nnx

from evals.data import batches

# Cosines that differ by less are equal: float32 products of one pair differ by up to this much
# from one routine to another, and a collapsed model must not be told apart by rounding.
TIE = 1e-6
_TIMED_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings float32 `[M, P]`, seconds spent compiling, and images per second without that.

    The rate is the median of a few runs on one batch, while nothing else is read or computed.
    """

    embeddings: np.ndarray
    compile_seconds: float
    images_per_second: float


def embed_images(pretrained, images, *, batch_size, rng=None, progress="images") -> Embedded:
    """Embeds M images (paths or arrays); `rng` is the key of random landmarks.

    Raises:
      ValueError: embeddings that are not finite.
    """
    run = functools.partial(_encode_images, *nnx.split(pretrained.model))
    batch_size = min(batch_size, len(images))
    rows, first = [], None
    bar = tqdm.tqdm(total=len(images), desc=progress, unit="img", leave=False, mininterval=1)
    with bar:
        for index, (batch, count) in enumerate(batches(images, pretrained.preprocess, batch_size)):
            key = None if rng is None else jax.random.fold_in(rng, index)
            out, seconds = _timed(run, batch, key)
            first = seconds if first is None else first  # compiles, unless an equal model has run
            rows.append(np.asarray(out, np.float32)[:count])
            bar.update(count)
    typical = float(np.median([_timed(run, batch, key)[1] for _ in range(_TIMED_RUNS)]))
    embeddings = _finite(np.concatenate(rows), "image")
    return Embedded(embeddings, max(first - typical, 0.0), batch_size / typical)


def embed_texts(pretrained, texts, *, batch_size=256) -> np.ndarray:
    """Embeds L texts, float32 `[L, P]`; raises ValueError where they are not finite."""
    # The image tower's attention means nothing here: without it all arms share one program.
    plain = pretrained.with_attention(None).with_interventions({})
    run = functools.partial(_encode_texts, *nnx.split(plain.model))
    rows = []
    starts = range(0, len(texts), batch_size)
    for start in tqdm.tqdm(starts, desc="texts", unit="batch", leave=False, mininterval=1):
        chunk = list(texts[start : start + batch_size])
        token_ids = pretrained.tokenize(chunk)
        padded = np.pad(token_ids, ((0, batch_size - len(chunk)), (0, 0)), mode="edge")
        rows.append(np.asarray(run(padded), np.float32)[: len(chunk)])
    return _finite(np.concatenate(rows), "text")


def unit(x):
    """Rows of x `[M, P]` at length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _finite(embeddings, kind):
    if not np.isfinite(embeddings).all():
        bad = int(np.sum(~np.isfinite(embeddings).all(axis=1)))
        raise ValueError(
            f"{bad} of {len(embeddings)} {kind} embeddings hold NaN or infinity; check the weights "
            "(python -m convert names such tensors), or compute in float32"
        )
    return embeddings


@functools.partial(jax.jit, static_argnums=0)
def _encode_images(graphdef, state, images, rng):
    return nnx.merge(graphdef, state).encode_image(images, rng=rng)


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(graphdef, state, token_ids):
    return nnx.merge(graphdef, state).encode_text(token_ids)


def _timed(function, *args):
    start = time.perf_counter()
    out = jax.block_until_ready(function(*args))
    return out, time.perf_counter() - start
