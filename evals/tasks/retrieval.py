"""Retrieval between images and captions: recall at 1, 5 and 10, both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from evals.data import CaptionedImages
from evals.running.embed import TIE, Embedder, unit

_DEPTHS = (1, 5, 10)
# Images stay on the device so many at a time, while the captions pass by in blocks; similarities
# exist for a tile of images and one block of captions.
_IMAGES, _TILE, _CAPTIONS = 32_768, 1024, 2048


def retrieval(pretrained, data: CaptionedImages, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `image_to_text_r1` and so on, in percent.

    Images without captions are found in error by captions, but have nothing to find themselves:
    `image_to_text` is of the others, the number of which is `num_images_with_captions`.

    Arguments are those of `evals.tasks.zero_shot.zero_shot`.
    """
    images = embedder.images(pretrained, data.images, rng=rng)
    data = data.take(images.rows)
    texts = embedder.texts(pretrained, data.captions)
    image_to_text, text_to_image = retrieval_ranks(
        unit(images.embeddings), unit(texts), data.image_of_caption
    )
    image_to_text = image_to_text[np.unique(data.image_of_caption)]
    record = {
        "task": "retrieval",
        "num_images": len(data.images),
        "num_images_with_captions": len(image_to_text),
        "num_captions": len(data.captions),
    }
    for direction, rank in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        record |= {f"{direction}_r{k}": float(100 * np.mean(rank < k)) for k in _DEPTHS}
    return record | images.times


def retrieval_ranks(images, texts, image_of_caption):
    """Ranks from 0 of the first right answer: each image's captions, each caption's image.

    An equal score counts as ahead, so that a constant embedding finds nothing; so does NaN. Memory
    of the device is bounded whatever M and L.

    Args:
      images: unit rows `[M, P]`.
      texts: unit rows `[L, P]`.
      image_of_caption: int `[L]`.

    Returns:
      int `[M]`, L for an image without captions, and int `[L]`.
    """
    own = np.empty(len(texts), np.float32)
    for rows in _slices(len(texts), _CAPTIONS):
        own[rows] = np.einsum("lp,lp->l", texts[rows], images[image_of_caption[rows]])
    best = np.full(len(images), -np.inf, np.float32)  # of the image's own captions
    with np.errstate(invalid="ignore"):
        np.maximum.at(best, image_of_caption, own)

    captions = [
        (texts[rows], own[rows], image_of_caption[rows]) for rows in _slices(len(texts), _CAPTIONS)
    ]
    image_rank, caption_rank = [], [0] * len(captions)
    blocks = _slices(len(images), _IMAGES)
    for rows in tqdm.tqdm(blocks, desc="ranks", unit="block", leave=False, mininterval=1):
        tiles = _tiles(images[rows], best[rows], np.arange(len(images))[rows])
        count = 0
        for block, columns in enumerate(captions):
            of_images, of_captions = _count_ahead(tiles, columns)
            count += of_images
            caption_rank[block] += of_captions
        image_rank.append(np.asarray(count)[: len(images[rows])])
    return np.concatenate(image_rank), np.concatenate(jax.device_get(caption_rank))


def _slices(length, size):
    return [slice(start, start + size) for start in range(0, length, size)]


def _tiles(images, best, rows):
    """Each `[M, …]` on the device as `[tiles, tile, …]`, filled up with images of row −1."""
    tile = min(_TILE, len(images))
    missing = -len(images) % tile

    def split(x, fill):
        x = np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=fill)
        return jnp.asarray(x.reshape(-1, tile, *x.shape[1:]))

    return split(images, 0), split(best, 0), split(rows, -1)


@jax.jit
def _count_ahead(tiles, captions):
    """Captions ahead of each image's best own `[M]`; images ahead of each caption's own `[L]`."""
    texts, own, owner = captions

    def count(of_captions, tile):
        images, best, rows = tile
        scores = jnp.matmul(images, texts.T, precision=jax.lax.Precision.HIGHEST)
        other = (rows[:, None] != owner) & (rows[:, None] >= 0)
        of_images = jnp.sum(~(scores < best[:, None] - TIE) & other, axis=1)
        return of_captions + jnp.sum(~(scores < own - TIE) & other, axis=0), of_images

    of_captions, of_images = jax.lax.scan(count, jnp.zeros(len(own), int), tiles)
    return of_images.ravel(), of_captions
