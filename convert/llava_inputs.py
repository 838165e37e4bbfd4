"""What LLaVAs are compared on: texts with one image each, of which every tile shows the same."""

import numpy as np

from models.configs import image_shape
from models.inputs.prompts import lay_out
from models.inputs.tiles import plain_packing
from models.llava import LLaVAConfig, Prompts

_BEFORE, _AFTER = 3, 4  # words around the image


def size_of_image(side) -> tuple[int, int]:
    """Height and width of the image: two tiles high, with padding beside it."""
    return 2 * side, side - side // 5


def _packing(config: LLaVAConfig):
    if config.tiling is None:
        return plain_packing(config.num_features)
    return config.tiling.packing(size_of_image(config.vision.image_size))


def random_texts(config: LLaVAConfig, rng) -> np.ndarray:
    """Token ids `[2, T]` with as many image tokens in their middle as there are features."""
    words = rng.integers(0, config.decoder.vocab_size - 1, (2, _BEFORE + _AFTER))
    words += words >= config.image_token_id
    image = np.full((2, len(_packing(config).index)), config.image_token_id)
    return np.concatenate([words[:, :_BEFORE], image, words[:, _BEFORE:]], axis=1)


def prompts_of(config: LLaVAConfig, images, token_ids) -> Prompts | None:
    """The same texts with tiles of images `[2, height, width, 3]`; None for those of other size."""
    if images.shape[1:3] != image_shape(config.vision):
        return None
    tiling = config.tiling
    times = 1 if tiling is None else tiling.num_tiles(size_of_image(tiling.side))
    looked = [[(np.repeat(image[None], times, axis=0), _packing(config))] for image in images]
    texts = [[*ids[:_BEFORE], config.image_token_id, *ids[-_AFTER:]] for ids in token_ids]
    return lay_out(texts, looked, config=config)
