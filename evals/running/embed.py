"""Embeddings of images and texts in batches, with honest times."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from evals.data.unreadable import checked_number
from evals.running.cache import Cache, open_cache
from evals.running.devices import data_parallel, fitting, gather, joined, over_batches, own_slots

# Cosines that differ by less are equal: float32 products of one pair differ by up to this much
# from one routine to another, and a collapsed model must not be told apart by rounding.
TIE = 1e-6
_TIMED_RUNS = 5
_TEXTS = 256  # per step
_PART = 4096  # images that are kept on disk together, about
_ARRAYS = "rows", "embeddings"
_NONE = np.zeros(0, int)  # of a part in which no image opens


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of the images that open, and the times of computing them.

    Attributes:
      embeddings: float32 `[M', P]`.
      rows: int `[M']`, ascending: the images embedded.
      compile_seconds: spent compiling.
      images_per_second: without that, the median of a few runs on one batch, while nothing else is
        read or computed.
      num_unreadable: the images that did not open.
    """

    embeddings: np.ndarray
    rows: np.ndarray
    compile_seconds: float
    images_per_second: float
    num_unreadable: int

    @property
    def times(self) -> dict:
        """What a record says of them, and of the images that did not open."""
        return {
            "num_unreadable": self.num_unreadable,
            "compile_seconds": self.compile_seconds,
            "images_per_second": self.images_per_second,
        }


@dataclasses.dataclass(frozen=True)
class Embedder:
    """How a run computes embeddings: all tasks of a run share one.

    Attributes:
      batch_size: images per step.
      workers: processes that read images, as in `evals.data.batches`.
      cache: where embeddings are kept, and found again; None to compute them every time.
    """

    batch_size: int
    workers: int | None = None
    cache: Cache | None = None

    def images(self, backbone, images, *, output="embedding", rng=None) -> Embedded:
        """Embeds M images, paths or uint8 arrays.

        Args:
          backbone: an `evals.running.pretrained.Backbone`.
          images: M of them.
          output: a name of `OUTPUTS`.
          rng: key of random landmarks, if the attention draws them.

        Raises:
          ValueError: embeddings that are not finite, or more than 1 % of images that do not open.
        """
        batch_size = fitting(self.batch_size, len(images))
        per_part = -(-_PART // batch_size)  # batches
        numbers = range(-(-len(images) // (batch_size * per_part)))
        settings = dict(output=output, batch_size=batch_size, per_part=per_part, rng=rng)
        entry = self.cache and self.cache.of_images(backbone, images, **settings)
        parts = _stored(entry, numbers)
        if missing := numbers[len(parts) :]:
            run = Timed(data_parallel(OUTPUTS[output], backbone.model))
            options = dict(rng=rng, workers=self.workers, start=missing[0] * per_part)
            found = over_batches(run, images, backbone.preprocess, batch_size, **options)
            parts += _computed(found, run, batch_size * per_part, missing, entry)
        some = [part for part in parts if len(part["rows"])]
        rows, embeddings = (np.concatenate([p[name] for p in some]) for name in _ARRAYS)
        unreadable = checked_number(len(images) - len(rows), len(images))
        compile_seconds, typical = map(float, parts[-1]["times"])
        return Embedded(embeddings, rows, compile_seconds, batch_size / typical, unreadable)

    def texts(self, pretrained, texts) -> np.ndarray:
        """Embeds L texts, float32 `[L, P]`; raises ValueError where they are not finite."""
        starts = range(0, len(texts), _TEXTS)
        chunks = [pretrained.tokenize(list(texts[start : start + _TEXTS])) for start in starts]
        entry = self.cache and self.cache.of_texts(pretrained, np.concatenate(chunks))
        if entry is not None and (stored := entry.read(0)) is not None:
            return stored["embeddings"]
        # The image tower's attention means nothing here: without it all arms share one program.
        run = data_parallel(_encode_texts, pretrained.exact().model)
        out = []
        for chunk in tqdm.tqdm(chunks, desc="texts", unit="batch", leave=False, mininterval=1):
            padded = np.pad(chunk, ((0, _TEXTS - len(chunk)), (0, 0)), mode="edge")
            out.append(gather(run(own_slots(padded)))[: len(chunk)])
        embeddings = _finite(np.concatenate(out), "text")
        if entry is not None:
            entry.write(0, {"embeddings": embeddings})
        return embeddings


def _stored(entry, numbers):
    """The arrays of the first parts, those in front of the first one that is missing."""
    parts = []
    for number in numbers:
        part = None if entry is None else entry.read(number)
        if part is None:
            break
        parts.append(part)
    return parts


def _computed(found, run, size, numbers, entry):
    """The arrays of the parts with these numbers, each written as soon as it is whole.

    Args:
      found: yields rows and embeddings of batches.
      run: the `Timed` function that computes them.
      size: images of a part.
      numbers: a range; with the last part come the times.
      entry: where they are written; None for nowhere.
    """
    parts, following = [], next(found, None)
    for number in numbers:
        group = []
        while following is not None and following[0][0] // size == number:
            group.append(following)
            following = next(found, None)
        rows, embeddings = joined(group) if group else (_NONE, _NONE)
        part = {"rows": rows, "embeddings": _finite(embeddings, "image")}
        if number == numbers[-1]:
            part["times"] = np.array(run.times())
        if entry is not None:
            entry.write(number, part)
        parts.append(part)
    return parts


def open_embedder(config, workdir) -> Embedder:
    """The embedder that a config asks for, for a run in that folder."""
    cache = open_cache(config, workdir)
    return Embedder(config.batch_size, config.get("num_workers"), cache)


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


def _embedding(model, images, rng):
    return model.encode_image(images, rng=rng).astype(jnp.float32)


def _pooled(model, images, rng):
    return model(images, rng=rng).pooled.astype(jnp.float32)


def _logits(model, images, rng):
    return model.classify(images, rng=rng).astype(jnp.float32)


OUTPUTS = {"embedding": _embedding, "pooled": _pooled, "logits": _logits}  # of an image, [B, P]


def _encode_texts(model, token_ids, rng):
    del rng
    return model.encode_text(token_ids).astype(jnp.float32)


class Timed:
    """The function, with the time of its first call, and with its last arguments."""

    def __init__(self, function):
        self.function, self.first = function, None

    def __call__(self, *arguments):
        self.arguments = arguments
        if self.first is None:  # compiles, unless an equal model ran
            out, self.first = _timed(self.function, *arguments)
            return out
        return self.function(*arguments)

    def times(self):
        """Seconds of compiling, and the median of a few runs on what it was called with last."""
        timed = [_timed(self.function, *self.arguments)[1] for _ in range(_TIMED_RUNS)]
        typical = float(np.median(timed))
        return max(self.first - typical, 0.0), typical


def _timed(function, *arguments):
    start = time.perf_counter()
    out = jax.block_until_ready(function(*arguments))
    return out, time.perf_counter() - start
