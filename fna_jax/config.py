"""How FNA runs inside a vision transformer."""

import dataclasses
import operator

from fna_jax.attention import IMPLEMENTATIONS
from fna_jax.landmarks import METHODS

FEATURES = ("input", "q", "k", "v")
_MOST_BLOCKS = 10_000  # no model has as many
EXCLUDED = (None, "massive_by_norm", "massive_by_attention")


@dataclasses.dataclass(frozen=True)
class FNAConfig:
    """Which blocks run FNA, and how their landmarks are chosen. Validated, hashable.

    Attributes:
      layers: block indices from 0; a tuple, or text like "13:24" (24 excluded), "9,13:24" or
        "(9, 13)".
      num_landmarks: S, guaranteed tokens included.
      features: what landmarks are chosen on: "input", the block's input before its layer norm, or
        "q", "k", "v", the projected states averaged over heads.
      method: "fps", farthest point sampling, or "random", which needs an `rng` in the model's call.
      resample: choose landmarks anew in each FNA block (more accurate, dearer); otherwise the first
        FNA block's serve all.
      guarantee_prefix: the class token and registers are always landmarks.
      exclude: massive tokens that are never landmarks, found where landmarks are chosen:
        "massive_by_norm" or "massive_by_attention" (which needs a class token); None for none.
      inverse_steps: Newton–Schulz steps; six are the method.
      implementation: of the attentions, as in `fast_nystrom_attention`.

    Raises:
      ValueError: a field outside its range; the message names it.
    """

    layers: tuple[int, ...]
    num_landmarks: int
    features: str = "q"
    method: str = "fps"
    resample: bool = False
    guarantee_prefix: bool = True
    exclude: str | None = None
    inverse_steps: int = 6
    implementation: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "layers", parse_blocks(self.layers, "layers"))
        for name, least in (("num_landmarks", 1), ("inverse_steps", 0)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
        for name, choices in (
            ("features", FEATURES),
            ("method", METHODS),
            ("exclude", EXCLUDED),
            ("implementation", IMPLEMENTATIONS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("resample", "guarantee_prefix"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")


def parse_blocks(layers, name):
    """Ascending block indices without repeats from a sequence or from text like "13:24".

    Raises:
      ValueError: anything else, or nothing; the message calls it by `name`.
    """
    complaint = (
        f"{name} must be block indices, as in (13, 14), '13:24' or '9,13:24', got {layers!r}; "
        "where no block is meant, leave it out"
    )
    try:
        if isinstance(layers, str):
            written = layers[:1] + layers[-1:] in ("()", "[]")  # as a tuple or list is: "(3,)"
            text = layers[1:-1].removesuffix(",") if written else layers
            layers = [index for part in text.split(",") for index in _parse_range(part)]
        indices = tuple(sorted(operator.index(layer) for layer in layers))
    except (TypeError, ValueError):
        raise ValueError(complaint) from None
    if not indices or indices[0] < 0 or len(set(indices)) != len(indices):
        raise ValueError(complaint)
    return indices


def _parse_range(text):
    """The indices of "13:24", or the one of "13"."""
    start, colon, stop = text.partition(":")
    if colon and int(stop) - int(start) > _MOST_BLOCKS:
        raise ValueError("too many")
    return range(int(start), int(stop)) if colon else [int(start)]
