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
_TEXTS = 256  # per step


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of the images that open, and the times of computing them.

    Attributes:
      embeddings: float32 `[M', P]`.
      rows: int `[M']`, ascending: the images embedded.
      compile_seconds: spent compiling.
      images_per_second: without that, the median of a few runs on one batch, while nothing else is
        read or computed.
    """

    embeddings: np.ndarray
    rows: np.ndarray
    compile_seconds: float
    images_per_second: float

    @property
    def times(self) -> dict:
        """What a record says of them."""
        return {
            "compile_seconds": self.compile_seconds,
            "images_per_second": self.images_per_second,
        }


@dataclasses.dataclass(frozen=True)
class Embedder:
    """How a run computes embeddings: all tasks of a run share one.

    Attributes:
      batch_size: images per step.
    """

    batch_size: int

    def images(self, backbone, images, *, output="embedding", rng=None) -> Embedded:
        """Embeds M images, paths or uint8 arrays.

        Args:
          backbone: an `evals.pretrained.Backbone`.
          images: M of them.
          output: a name of `OUTPUTS`.
          rng: key of random landmarks, if the attention draws them.

        Raises:
          ValueError: embeddings that are not finite, or an image that does not open.
        """
        run = functools.partial(_embed, *nnx.split(backbone.model))
        batch_size = min(self.batch_size, len(images))
        out, rows, first = [], [], None
        bar = tqdm.tqdm(total=len(images), desc="images", unit="img", leave=False, mininterval=1)
        with bar:
            for batch in batches(images, backbone.preprocess, batch_size):
                key = None if rng is None else jax.random.fold_in(rng, len(rows))
                embedded, seconds = _timed(run, batch.images, key, output=output)
                first = seconds if first is None else first  # compiles, unless an equal model ran
                out.append(np.asarray(embedded, np.float32)[batch.real])
                rows.append(batch.rows[batch.real])
                bar.update(int(batch.real.sum()))
        timed = [_timed(run, batch.images, key, output=output)[1] for _ in range(_TIMED_RUNS)]
        typical = float(np.median(timed))
        embeddings = _finite(np.concatenate(out), "image")
        compile_seconds = max(first - typical, 0.0)
        return Embedded(embeddings, np.concatenate(rows), compile_seconds, batch_size / typical)

    def texts(self, pretrained, texts) -> np.ndarray:
        """Embeds L texts, float32 `[L, P]`; raises ValueError where they are not finite."""
        # The image tower's attention means nothing here: without it all arms share one program.
        plain = pretrained.exact()
        run = functools.partial(_encode_texts, *nnx.split(plain.model))
        starts = range(0, len(texts), _TEXTS)
        out = []
        for start in tqdm.tqdm(starts, desc="texts", unit="batch", leave=False, mininterval=1):
            chunk = list(texts[start : start + _TEXTS])
            token_ids = pretrained.tokenize(chunk)
            padded = np.pad(token_ids, ((0, _TEXTS - len(chunk)), (0, 0)), mode="edge")
            out.append(np.asarray(run(padded), np.float32)[: len(chunk)])
        return _finite(np.concatenate(out), "text")


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


OUTPUTS = {  # what a model can give for an image, [B, P]
    "embedding": lambda model, images, rng: model.encode_image(images, rng=rng),
    "pooled": lambda model, images, rng: model(images, rng=rng).pooled,
    "logits": lambda model, images, rng: model.classify(images, rng=rng),
}


@functools.partial(jax.jit, static_argnums=0, static_argnames="output")
def _embed(graphdef, state, images, rng, *, output):
    return OUTPUTS[output](nnx.merge(graphdef, state), images, rng)


@functools.partial(jax.jit, static_argnums=0)
def _encode_texts(graphdef, state, token_ids):
    return nnx.merge(graphdef, state).encode_text(token_ids)


def _timed(function, *args, **kwargs):
    start = time.perf_counter()
    out = jax.block_until_ready(function(*args, **kwargs))
    return out, time.perf_counter() - start
