"""Which attention to take for a model and a number of tokens, as measured on a real one."""

import operator

from fna_jax import FNAConfig

from .configs import EncoderConfig
from .registry import family_of, vision_config

_LEAST_TOKENS = 1000  # the fewest that were measured
_LEAST_SHARE = 0.2  # of attention in the blocks' arithmetic, for a gain of a tenth in half of them
_BOTH_HALVES = 2000  # tokens from which on the first half of the blocks pays, too


def recommended(model, num_tokens) -> tuple[FNAConfig, ...]:
    """Settings for `models.with_attention`; none where exact attention is the faster one.

    In the second half of the blocks centroid attention with 64 clusters, and from 2,000 tokens on
    in the first half the same with a near field of 64 windows, for attention is local there. Both
    hand their clusters on from block to block and refine them.

    Read off `results/recommended.csv`, by `python -m benchmarks.recommended`: on photographs and a
    DINOv2 ViT-S/14, whose class token and patch tokens it changes by about 5 % (second half) and
    15 % (both). How far that holds for another model, `main.py --config pretrained.py` tells, and
    `--config tune.py` finds what is best for it.

    Args:
      model: of this zoo.
      num_tokens: N of an image, class token and registers included.

    Raises:
      TypeError: a model from elsewhere, or a number of tokens that is no integer.
      ValueError: less than one token.
    """
    family_of(model)
    num_tokens = operator.index(num_tokens)
    if num_tokens < 1:
        raise ValueError(f"num_tokens must be at least 1, got {num_tokens}")
    return recommended_for(vision_config(model.config).encoder, num_tokens)


def recommended_for(encoder: EncoderConfig, num_tokens) -> tuple[FNAConfig, ...]:
    """`recommended`, for the encoder of a vision tower."""
    if num_tokens < _LEAST_TOKENS or encoder.attention_share(num_tokens) < _LEAST_SHARE:
        return ()
    middle = encoder.depth // 2
    settings = dict(approximation="centroid", features="k", num_landmarks=64, refine=1)
    far = FNAConfig(f"{middle}:{encoder.depth}", **settings)
    if num_tokens < _BOTH_HALVES or not middle:
        return (far,)
    return FNAConfig(f"0:{middle}", windows=64, **settings), far
