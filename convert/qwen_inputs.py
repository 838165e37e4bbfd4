"""What Qwen3-VLs are compared on: texts with one image each."""

import numpy as np

from models.inputs.qwen_prompts import lay_out, merged_grid
from models.qwen_vl import QwenPrompts, QwenVLConfig

_BEFORE, _AFTER = 3, 4  # words around the image


def random_texts(config: QwenVLConfig, size, rng) -> np.ndarray:
    """Token ids `[2, T]` with an image's tokens, of height and width in pixels, in their middle."""
    marks = config.image_token_id, config.video_token_id
    words = np.setdiff1d(np.arange(config.decoder.vocab_size), marks)
    words = rng.choice(words, (2, _BEFORE + _AFTER))
    down, across = merged_grid(np.empty((*size, 3)), config)
    image = np.full((2, down * across), config.image_token_id)
    return np.concatenate([words[:, :_BEFORE], image, words[:, _BEFORE:]], axis=1)


def prompts_of(config: QwenVLConfig, images, token_ids) -> QwenPrompts:
    """The same texts with images `[2, height, width, 3]`."""
    texts = [[*ids[:_BEFORE], config.image_token_id, *ids[-_AFTER:]] for ids in token_ids]
    return lay_out(texts, [[image[None]] for image in images], config=config)
