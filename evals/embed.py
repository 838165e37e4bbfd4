"""Embeddings of images and texts in batches, with honest times."""

import dataclasses
import functools
import time

import jax
import numpy as np
import tqdm
from flax import nnx

from evals.data import batches


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings float32 `[M, P]`, seconds spent compiling, and images per second without that.

    The rate is the median over full batches, so it counts neither compilation nor reading.
    """

    embeddings: np.ndarray
    compile_seconds: float
    images_per_second: float


def embed_images(pretrained, images, *, batch_size, rng=None, progress="images") -> Embedded:
    """Embeds M images (paths or arrays); `rng` is the key of random landmarks."""
    run = functools.partial(_encode_images, *nnx.split(pretrained.model))
    batch_size = min(batch_size, len(images))
    rows, seconds = [], []
    bar = tqdm.tqdm(total=len(images), desc=progress, unit="img", leave=False, mininterval=1)
    with bar:
        for index, (batch, count) in enumerate(batches(images, pretrained.preprocess, batch_size)):
            key = None if rng is None else jax.random.fold_in(rng, index)
            if index == 0:
                first = _timed(run, batch, key)[1]  # compiles, unless an equal model has run
            out, took = _timed(run, batch, key)
            rows.append(np.asarray(out, np.float32)[:count])
            seconds.append(took)
            bar.update(count)
    typical = float(np.median(seconds))
    return Embedded(np.concatenate(rows), max(first - typical, 0.0), batch_size / typical)


def embed_texts(pretrained, texts, *, batch_size=256) -> np.ndarray:
    """Embeds L texts, float32 `[L, P]`."""
    run = functools.partial(_encode_texts, *nnx.split(pretrained.model))
    rows = []
    for start in range(0, len(texts), batch_size):
        chunk = list(texts[start : start + batch_size])
        token_ids = pretrained.tokenize(chunk)
        padded = np.pad(token_ids, ((0, batch_size - len(chunk)), (0, 0)), mode="edge")
        rows.append(np.asarray(run(padded), np.float32)[: len(chunk)])
    return np.concatenate(rows)


def unit(x):
    """Rows of x `[M, P]` at length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


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
