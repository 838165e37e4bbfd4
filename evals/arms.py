"""The attentions that a run compares: exact, and FNA by its settings."""

import dataclasses

import ml_collections

from fna_jax import FNAConfig

METHOD_NAMES = {"fps": "farthest point", "random": "random"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """One attention to evaluate: exact (`fna` None) or FNA; a seed for random landmarks."""

    fna: FNAConfig | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        if self.fna is None:
            return "exact"
        name = f"{self.fna.method}-{self.fna.num_landmarks}"
        return name if self.seed is None else f"{name}-seed{self.seed}"


def make_arms(fna: ml_collections.ConfigDict, depth: int) -> list[Arm]:
    """Exact attention, then every method, number of landmarks and seed of the settings."""
    layers = f"{depth // 2}:{depth}" if fna.layers == "second half" else fna.layers
    arms = [Arm()]
    for method in fna.methods:
        for num_landmarks in fna.num_landmarks:
            settings = FNAConfig(
                layers=layers,
                num_landmarks=num_landmarks,
                features=fna.features,
                method=method,
                resample=fna.resample,
                exclude=fna.exclude,
                inverse_steps=fna.inverse_steps,
            )
            arms += [Arm(settings, seed) for seed in (fna.seeds if method == "random" else [None])]
    return arms
