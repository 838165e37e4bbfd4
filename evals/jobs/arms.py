"""The attentions that a run compares: exact, FNA and centroid attention by their settings."""

import dataclasses
import itertools

import ml_collections

from evals.jobs.strategies import Strategy
from evals.jobs.tuned import TUNED, read_tuned
from fna_jax import FNAConfig
from models.registry import did_you_mean

_CENTROID = dict(approximation="centroid")
METHODS = {  # what a config calls a method: the fields of its FNAConfig
    "fps": {},
    "random": dict(method="random"),
    "centroid": _CENTROID,
    "kmeans": _CENTROID | dict(partition="kmeans"),
    "windows": _CENTROID | dict(partition="windows"),
}
METHOD_NAMES = {
    "exact": "exact",
    "fps": "FNA, farthest point",
    "random": "FNA, random",
    "centroid": "centroid, farthest point",
    "kmeans": "centroid, k-means",
    "windows": "centroid, windows",
    TUNED: "tuned",
}

WITHOUT_NUMBER = ("exact", TUNED)  # of landmarks


def kind_of(method) -> str:
    """What a method is in a word: "exact", "FNA" or "centroid"."""
    return METHOD_NAMES[method].partition(",")[0]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to run a model.

    Attributes:
      fna: the settings of the approximation, a tuple of some for different blocks, or none of
        them, or None, for exact attention.
      method: what a config calls it, a key of `METHOD_NAMES`.
      seed: of random landmarks; None for others.
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

    @property
    def fnas(self) -> tuple[FNAConfig, ...]:
        """The settings of all its approximations."""
        if self.fna is None:
            return ()
        return self.fna if isinstance(self.fna, tuple) else (self.fna,)

    def view(self, backbone):
        """The `evals.running.pretrained.Backbone` run so.

        Raises:
          ValueError: blocks that the model does not have, or what FNA cannot honour.
        """
        view = backbone.with_attention(self.fna)
        if self.image_size is not None:
            view = dataclasses.replace(view, preprocess=view.preprocess.at_size(self.image_size))
        return view if self.strategy is None else self.strategy.view(view)


def make_arms(fna: ml_collections.ConfigDict, depth: int) -> list[Arm]:
    """Exact attention, every method, number of landmarks and seed of the settings, and `tuned`.

    Raises:
      FileNotFoundError, ValueError: settings that no model, or this one, could run.
    """
    arms, others = [Arm()], dict(exclude=fna.exclude, inverse_steps=fna.inverse_steps)
    for method, num_landmarks in itertools.product(fna.methods, fna.num_landmarks):
        settings = settings_of(
            method,
            fna.centroid,
            layers=blocks_of(fna.layers, depth),
            num_landmarks=num_landmarks,
            features=fna.features,
            resample=fna.resample,
            **others,
        )
        for seed in fna.seeds if method == "random" else [None]:
            suffix = "" if seed is None else f"-seed{seed}"
            arms.append(Arm(settings, method, seed, name=f"{method}-{num_landmarks}{suffix}"))
    if fna.tuned is not None:
        arms.append(Arm(read_tuned(fna.tuned, depth), TUNED, name=TUNED))
    return arms


def settings_of(method, centroid, **fields) -> FNAConfig:
    """The settings of a method, from those of all: each takes the fields that it has a use for.

    Args:
      method: a key of `METHODS`.
      centroid: fields of the centroid methods alone, which take the place of others.
      **fields: of `FNAConfig`.

    Raises:
      ValueError: an unknown method, or a value that is out of range.
    """
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
    """What a config calls layers, as `FNAConfig` takes it: "second half" of so many, or blocks."""
    return f"{depth // 2}:{depth}" if layers == "second half" else layers
