"""How attention is approximated inside a vision transformer."""

import dataclasses
import operator

from fna_jax.landmarks import METHODS
from fna_jax.nystrom import IMPLEMENTATIONS

FEATURES = ("input", "q", "k", "v")
APPROXIMATIONS = ("nystrom", "centroid")
PARTITIONS = ("landmarks", "kmeans", "windows")
_MOST_BLOCKS = 10_000  # no model has as many
EXCLUDED = (None, "massive_by_norm", "massive_by_attention")


@dataclasses.dataclass(frozen=True)
class FNAConfig:
    """Which blocks are approximated, and by what: FNA, or centroid attention. Validated, hashable.

    Attributes:
      layers: block indices from 0; a tuple, or text like "13:24" (24 excluded), "9,13:24" or
        "(9, 13)".
      num_landmarks: S, guaranteed tokens included. In the partitions "kmeans" and "windows" at most
        so many windows of the image, as square as they go (boxes of a video, as cubic as they go);
        class token and registers come on top.
      features: what landmarks are chosen on: "input", the block's input before its layer norm, or
        "q", "k", "v", the projected states averaged over heads.
      method: "fps", farthest point sampling, or "random", which needs an `rng` in the model's call.
      resample: choose landmarks or clusters anew in each block (more accurate, dearer); otherwise
        those of the first block serve all.
      guarantee_prefix: the class token and registers are always landmarks, and alone in a cluster.
      exclude: massive tokens that are never landmarks, found where landmarks are chosen:
        "massive_by_norm" or "massive_by_attention" (which needs a class token); None for none.
      inverse_steps: Newton–Schulz steps; six are the method.
      implementation: of the attentions, as in `fast_nystrom_attention`.
      approximation: "nystrom", `fast_nystrom_attention`, or "centroid", `centroid_attention`, to
        which the following belong.
      partition: of tokens into clusters: "landmarks", each token to its nearest landmark, and one
        Lloyd step on `features`; "kmeans", three Lloyd steps from windows; "windows" of the image.
      windows: near field: tokens in the same one of at most so many windows of the image are
        attended exactly; None for none.
      near: 0, or 1 for the 3 × 3 windows around a token's, of a video 3 × 3 × 3, as the near field.
      refine: Lloyd steps that each later block takes on its own `features` from the clusters of
        the one before; cheaper than `resample`, and about as accurate with one.
      residual: add what attention to the means lacks at each cluster's (window's) mean query.

    Raises:
      ValueError: a field outside its range, or one that nothing would use; the message names it.
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
    approximation: str = "nystrom"
    partition: str = "landmarks"
    windows: int | None = None
    near: int = 0
    refine: int = 0
    residual: bool = True

    def __post_init__(self):
        object.__setattr__(self, "layers", parse_blocks(self.layers, "layers"))
        for name, least in (
            ("num_landmarks", 1),
            ("inverse_steps", 0),
            ("refine", 0),
            ("windows", 1),
        ):
            number = getattr(self, name)
            if name == "windows" and number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
        for name, choices in (
            ("features", FEATURES),
            ("method", METHODS),
            ("exclude", EXCLUDED),
            ("implementation", IMPLEMENTATIONS),
            ("approximation", APPROXIMATIONS),
            ("partition", PARTITIONS),
            ("near", (0, 1)),
            ("resample", (False, True)),
            ("guarantee_prefix", (False, True)),
            ("residual", (False, True)),
        ):
            value = getattr(self, name)
            if value not in choices or isinstance(value, bool) != isinstance(choices[0], bool):
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}, got {value!r}"
                )
        self._refuse_unused()

    def _refuse_unused(self):
        """Raises ValueError for the first setting away from its default that nothing would use."""
        unused = {}
        if self.approximation == "nystrom":
            only = "approximation='centroid'"
            unused |= dict.fromkeys(("partition", "windows", "near", "refine", "residual"), only)
        else:
            unused["inverse_steps"] = "approximation='nystrom'"
            if self.partition != "landmarks":
                only = "partition='landmarks'"
                unused |= dict.fromkeys(("method", "exclude", "guarantee_prefix"), only)
            if self.partition == "windows":
                moved = "partition='landmarks' or 'kmeans'"
                unused |= dict.fromkeys(("features", "resample", "refine"), moved)
            if self.windows is None:
                unused["near"] = "windows, the number of them"
            if self.resample:
                unused["refine"] = "resample=False"
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name, needed in unused.items():
            if getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} needs {needed}, got "
                    f"approximation={self.approximation!r}, partition={self.partition!r}, "
                    f"windows={self.windows!r}, resample={self.resample!r}"
                )


def config_by_block(configs) -> dict[int, FNAConfig]:
    """The settings of each block that is approximated.

    Raises:
      ValueError: a block that two configs name.
    """
    by_block = {}
    for config in configs:
        if shared := sorted(by_block.keys() & set(config.layers)):
            raise ValueError(f"blocks {shared} are in the layers of two configs; each has one")
        by_block |= dict.fromkeys(config.layers, config)
    return by_block


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
