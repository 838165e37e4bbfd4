"""What a run compares: exact attention, FNA and centroid attention, and what people use instead."""

import dataclasses

import ml_collections

from evals.jobs.strategies import Strategy
from evals.jobs.tuned import TUNED, read_tuned
from fna_jax import FNAConfig
from fna_jax.config import parse_blocks
from models import TokenDropping, TokenMerging
from models.registry import did_you_mean, vision_config

_CENTROID = dict(approximation="centroid")
METHODS = {  # what a config calls a method: the fields of its FNAConfig
    "fps": {},
    "random": dict(method="random"),
    "centroid": _CENTROID,
    "kmeans": _CENTROID | dict(partition="kmeans"),
    "windows": _CENTROID | dict(partition="windows"),
    "means": _CENTROID | dict(residual=False),
}
# What people would use instead of another attention: exact attention among fewer tokens.
INSTEAD = ("tome", "drop", "random_drop", "smaller")
_RANDOM = ("random", "random_drop")
NAMED_LAYERS = ("second half", "all")
METHOD_NAMES = {
    "exact": "exact",
    "fps": "FNA, farthest point",
    "random": "FNA, random",
    "centroid": "centroid, farthest point",
    "kmeans": "centroid, k-means",
    "windows": "centroid, windows",
    "means": "cluster means alone",
    "tome": "token merging",
    "drop": "token dropping, landmarks stay",
    "random_drop": "token dropping, at random",
    "smaller": "smaller image",
    TUNED: "tuned",
}
COLOURS = {
    "exact": "#444444",
    "fps": "#1b6ca8",
    "random": "#d1751f",
    "centroid": "#2a8a4a",
    "kmeans": "#7a4fa3",
    "windows": "#c1272d",
    "means": "#8bc34a",
    "tome": "#e0559b",
    "drop": "#7f5539",
    "random_drop": "#c8a27c",
    "smaller": "#00a6c8",
    TUNED: "#b8860b",
}

WITHOUT_NUMBER = ("exact", TUNED)  # of landmarks, nor a share of the tokens


def kind_of(method) -> str:
    """What a method is in a word or two, such as "exact", "FNA" or "centroid"."""
    return METHOD_NAMES[method].partition(",")[0]


def without_seed(name) -> str:
    """The name of an arm without its seed: those that differ in nothing else share it."""
    return name.partition("-seed")[0]


def described(name) -> dict:
    """What the name of an arm of `make_arms` says, seeds aside: `method`, `num_landmarks` or None.

    And of `INSTEAD` `kept`, in percent of the tokens.
    """
    method, number, *_ = [*name.split("-"), ""]
    if method in INSTEAD:
        return {"method": method, "num_landmarks": None, "kept": int(number)}
    return {"method": method, "num_landmarks": int(number or 0) or None}


def strength(row) -> str:
    """In a table's column S the number of landmarks, or the share of the tokens that are kept."""
    return f"{row['kept']} %" if "kept" in row else str(row["num_landmarks"] or "")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to run a model.

    Attributes:
      fna: the settings of the approximation, a tuple of some for different blocks, or none of
        them, or None, for exact attention.
      reduction: what takes tokens away; None for nothing.
      pixels: share of the pixels that the images keep, about; None for all.
      method: what a config calls it, a key of `METHOD_NAMES`.
      seed: of random landmarks or tokens; None for others.
      image_size: side of the square images, pixels; None for the checkpoint's own preprocessing.
      strategy: of masking; None for none.
      name: what its results are called, in the names of files, too.
    """

    fna: FNAConfig | tuple[FNAConfig, ...] | None = None
    method: str = "exact"
    seed: int | None = None
    image_size: int | None = None
    strategy: Strategy | None = None
    name: str = "exact"
    reduction: TokenMerging | TokenDropping | None = None
    pixels: float | None = None

    @property
    def sees_all(self) -> bool:
        """Whether every block has all tokens of the image."""
        return self.reduction is None and self.pixels is None

    @property
    def drops(self) -> bool:
        """Whether some patches have no output."""
        return self.reduction is not None and self.reduction.drops

    @property
    def fnas(self) -> tuple[FNAConfig, ...]:
        """The settings of all its approximations."""
        if self.fna is None:
            return ()
        return self.fna if isinstance(self.fna, tuple) else (self.fna,)

    def view(self, backbone):
        """The `evals.running.pretrained.Backbone` run so.

        Raises:
          ValueError: blocks that the model does not have, what FNA cannot honour, or another size
            where the checkpoint leaves each image its own.
        """
        view = backbone.with_attention(self.fna).with_fewer_tokens(self.reduction)
        preprocess = view.preprocess
        if self.image_size is not None:
            preprocess = preprocess.at_size(self.image_size)
        if self.pixels is not None:
            patch = vision_config(view.model.config).patch_size
            patches = round(preprocess.side() * self.pixels**0.5 / patch)
            preprocess = preprocess.at_size(max(patches, 1) * patch)
        view = dataclasses.replace(view, preprocess=preprocess)
        return view if self.strategy is None else self.strategy.view(view)


def make_arms(fna: ml_collections.ConfigDict, depth: int) -> list[Arm]:
    """Exact attention, every method, strength and seed of the settings, and `tuned`.

    A strength is a number of landmarks, or of `INSTEAD` the percent of the tokens that are kept.

    Raises:
      FileNotFoundError, ValueError: settings that no model, or this one, could run.
    """
    arms, others = [Arm()], dict(exclude=fna.exclude, inverse_steps=fna.inverse_steps)
    layers = blocks_of(fna.layers, depth)
    for method in fna.methods:
        for number in fna.kept if method in INSTEAD else fna.num_landmarks:
            if method in INSTEAD:
                fields = instead(
                    method, number, fna.merging, depth, layers=layers, features=fna.features
                )
            else:
                shared = dict(features=fna.features, resample=fna.resample, **others)
                shared |= dict(layers=layers, num_landmarks=number)
                fields = dict(fna=settings_of(method, fna.centroid, **shared))
            for seed in seeds_of(method, fna.seeds):
                suffix = "" if seed is None else f"-seed{seed}"
                name = f"{method}-{number}{suffix}"
                arms.append(Arm(method=method, seed=seed, name=name, **fields))
    if fna.tuned is not None:
        arms.append(Arm(read_tuned(fna.tuned, depth), TUNED, name=TUNED))
    return arms


def seeds_of(method, seeds):
    """The seeds of a method that draws at random; for another one, None alone."""
    return seeds if method in _RANDOM else [None]


def instead(method, kept, merging, depth, *, layers, features) -> dict:
    """The fields of an `Arm` for one of `INSTEAD` that keeps so many percent of the tokens.

    Token merging leaves them after its last block; dropping, from the first of `layers` on; a
    smaller image has them from the beginning.

    Args:
      method: of `INSTEAD`.
      kept: percent.
      merging: `layers` and `proportional` of token merging.
      depth: blocks of the model.
      layers, features: as of FNA's settings.

    Raises:
      ValueError: a share that is none.
    """
    if isinstance(kept, bool) or not isinstance(kept, int) or not 0 < kept < 100:
        raise ValueError(f"kept must be percent of the tokens, from 1 to 99, got {kept!r}")
    if method == "smaller":
        return dict(pixels=kept / 100)
    if method == "tome":
        blocks = parse_blocks(blocks_of(merging.layers, depth), "merging.layers")
        share = (100 - kept) / (100 * len(blocks))
        return dict(reduction=TokenMerging(share, blocks, merging.proportional))
    chosen = "fps" if method == "drop" else "random"
    block = parse_blocks(layers, "layers")[0]
    return dict(reduction=TokenDropping(kept / 100, block, features, chosen))


def settings_of(method, centroid, **fields) -> FNAConfig:
    """The settings of a method, from those of all: each takes the fields that it has a use for.

    Args:
      method: a key of `METHODS`.
      centroid: fields of the centroid methods alone, which take the place of others.
      **fields: of `FNAConfig`.

    Raises:
      ValueError: an unknown method, or a value that is out of range.
    """
    if method in INSTEAD:
        raise ValueError(
            f"method {method!r} is no attention of some blocks but exact attention among fewer "
            "tokens: eval.py, sweep.py and pretrained.py compare it"
        )
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    mine = METHODS[method]
    if mine.get("approximation") == "centroid":
        fields = {name: fields[name] for name in fields if name != "inverse_steps"} | dict(centroid)
        if "partition" in mine:
            fields.pop("exclude", None)
        if mine.get("partition") == "windows":
            fields = {
                n: v for n, v in fields.items() if n not in ("features", "resample", "refine")
            }
    return FNAConfig(**(fields | mine))


def blocks_of(layers, depth):
    """What a config calls layers, as `FNAConfig` takes it: "second half" or "all" of so many, or
    blocks."""
    if layers not in NAMED_LAYERS:
        return layers
    return f"{depth // 2 if layers == 'second half' else 0}:{depth}"
