"""What a run of questions compares: attention in the tower, in decoding, and fewer image tokens."""

import dataclasses

import jax

from evals.jobs.arms import INSTEAD, METHOD_NAMES, Arm, blocks_of, make_arms
from models.image_tokens import ImageDropping
from models.landmark_cache import LandmarkCache

_CACHE = "landmark cache"
_EXACT = Arm()
_DROPPING = {"farthest": "image tokens, farthest points", "random": "image tokens, at random"}


@dataclasses.dataclass(frozen=True)
class AnswerArm:
    """One way to answer.

    Attributes:
      name: what its results are called, in the names of files, too.
      label: what a table calls it.
      strength: of the column S: landmarks, or the share of the image tokens that are kept.
      tower: the attention in the vision tower.
      cache: through which new tokens see the prompt; None to see all.
      dropping: of image tokens; None to keep all.
    """

    name: str = "exact"
    label: str = "exact"
    strength: str = ""
    tower: Arm = _EXACT
    cache: LandmarkCache | None = None
    dropping: ImageDropping | None = None

    def settings(self, prompts) -> dict:
        """Arguments of `Reader.generate` for a batch.

        A prompt of fewer tokens than landmarks is kept whole.
        """
        cache = self.cache
        if cache is not None:
            fewer = min(cache.num_landmarks, prompts.tokens.shape[1])
            cache = dataclasses.replace(cache, num_landmarks=fewer)
        seed = self.tower.seed
        rng = None if seed is None else jax.random.key(seed)
        return dict(rng=rng, dropping=self.dropping, landmark_cache=cache)


def make_answer_arms(config, model) -> list[AnswerArm]:
    """Exact attention, and every arm of a config of `--config vqa.py` for a model with this config.

    Raises:
      ValueError: settings that no model, or this one, could run.
    """
    if strange := [method for method in config.fna.methods if method in INSTEAD]:
        raise ValueError(
            f"--config.fna.methods: {strange[0]!r} leaves the language model without features of "
            "some patches; image tokens are dropped by --config.dropping"
        )
    arms = []
    for tower in make_arms(config.fna, model.vision.encoder.depth):
        strength = str(tower.fnas[0].num_landmarks) if len(tower.fnas) == 1 else ""
        arms.append(AnswerArm(tower.name, METHOD_NAMES[tower.method], strength, tower=tower))
    layers = blocks_of(config.landmark_cache.layers, model.decoder.depth)
    for number in config.landmark_cache.num_landmarks:
        cache = LandmarkCache(layers, number)
        arms.append(AnswerArm(f"cache-{number}", _CACHE, str(number), cache=cache))
    for method in config.dropping.methods:
        for kept in config.dropping.kept:
            arms += _dropping_arms(method, kept, config.dropping.seeds)
    return arms


def _dropping_arms(method, kept, seeds):
    """An arm for each seed of random tokens; of others one."""
    arms = []
    for seed in seeds if method == "random" else (0,):
        dropping = ImageDropping(kept, method, seed)
        suffix = f"-seed{seed}" if method == "random" else ""
        name = f"{method}-kept-{kept}{suffix}"
        arms.append(AnswerArm(name, _DROPPING[method], f"{kept} %", dropping=dropping))
    return arms
