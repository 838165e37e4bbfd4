"""The attentions that a run compares: exact, and FNA by its settings."""

import dataclasses
import itertools

import ml_collections

from evals.jobs.strategies import Strategy
from fna_jax import FNAConfig

METHOD_NAMES = {"fps": "farthest point", "random": "random"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to run a model.

    Attributes:
      fna: FNA's settings; None for exact attention.
      seed: of random landmarks; None for others.
      image_size: side of the square images, pixels; None for the checkpoint's own preprocessing.
      strategy: of masking; None for none.
      name: what its results are called, in the names of files, too.
    """

    fna: FNAConfig | None = None
    seed: int | None = None
    image_size: int | None = None
    strategy: Strategy | None = None
    name: str = "exact"

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
    """Exact attention, then every method, number of landmarks and seed of the settings."""
    arms = [Arm()]
    for method, num_landmarks in itertools.product(fna.methods, fna.num_landmarks):
        settings = FNAConfig(
            layers=blocks_of(fna.layers, depth),
            num_landmarks=num_landmarks,
            features=fna.features,
            method=method,
            resample=fna.resample,
            exclude=fna.exclude,
            inverse_steps=fna.inverse_steps,
        )
        for seed in fna.seeds if method == "random" else [None]:
            suffix = "" if seed is None else f"-seed{seed}"
            arms.append(Arm(settings, seed, name=f"{method}-{num_landmarks}{suffix}"))
    return arms


def blocks_of(layers, depth):
    """What a config calls layers, as `FNAConfig` takes it: "second half" of so many, or blocks."""
    return f"{depth // 2}:{depth}" if layers == "second half" else layers
