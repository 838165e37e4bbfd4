"""Retrieval between images and captions: recall at 1, 5 and 10, both ways."""

import numpy as np

from evals.data import CaptionedImages
from evals.embed import TIE, Embedder, unit

_DEPTHS = (1, 5, 10)
_BLOCK = 1024  # rows of the similarity matrix held at a time


def retrieval(pretrained, data: CaptionedImages, embedder: Embedder, *, rng=None) -> dict:
    """The record of one model: `image_to_text_r1` and so on, in percent.

    Arguments are those of `evals.zero_shot.zero_shot`.
    """
    images = embedder.images(pretrained, data.images, rng=rng)
    data = data.take(images.rows)
    texts = embedder.texts(pretrained, data.captions)
    image_to_text, text_to_image = retrieval_ranks(
        unit(images.embeddings), unit(texts), data.image_of_caption
    )
    record = {
        "task": "retrieval",
        "num_images": len(data.images),
        "num_captions": len(data.captions),
    }
    for direction, rank in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        record |= {f"{direction}_r{k}": float(100 * np.mean(rank < k)) for k in _DEPTHS}
    return record | images.times


def retrieval_ranks(images, texts, image_of_caption):
    """Ranks from 0 of the first right answer: each image's captions, each caption's image.

    An equal score counts as ahead, so that a constant embedding finds nothing; so does NaN.

    Args:
      images: unit rows `[M, P]`.
      texts: unit rows `[L, P]`.
      image_of_caption: int `[L]`; every image has at least one caption.

    Returns:
      int `[M]` and int `[L]`.
    """
    best_caption = np.full(len(images), -np.inf, np.float32)
    own = np.einsum("lp,lp->l", texts, images[image_of_caption])
    with np.errstate(invalid="ignore"):
        np.maximum.at(best_caption, image_of_caption, own)

    image_rank = np.zeros(len(images), int)
    caption_rank = np.zeros(len(texts), int)
    for start in range(0, len(images), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(images)))
        scores = images[rows] @ texts.T  # [rows, L]
        mine = image_of_caption[None] == rows[:, None]
        image_rank[rows] = np.sum(~(scores < best_caption[rows, None] - TIE) & ~mine, axis=1)
        caption_rank += np.sum(~(scores < own - TIE) & ~mine, axis=0)
    return image_rank, caption_rank
