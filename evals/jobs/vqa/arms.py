"""What a run of questions compares: attention in the tower, in reading the prompt, and in writing
the answer; and fewer image tokens."""

import dataclasses

import jax

from evals.jobs.arms import INSTEAD, METHOD_NAMES, Arm, blocks_of, make_arms
from models.image_tokens import ImageDropping
from models.landmark_cache import LandmarkCache
from models.prefill import CentroidPrefill, NystromPrefill

_CACHE = "landmark cache"
_PREFILL_FNA, _PREFILL_RUNS = "FNA in prefill", "centroid, runs, in prefill"
_EXACT = Arm()
_DROPPING = {
    "farthest": "image tokens, farthest points",
    "random": "image tokens, at random",
    "attention": "image tokens, most attended to",
}


@dataclasses.dataclass(frozen=True)
class AnswerArm:
    """One way to answer.

    Attributes:
      name: what its results are called, in the names of files, too.
      label: what a table calls it.
      strength: of the column S: landmarks, tokens of a run, or the share of the image tokens that
        are kept.
      tower: the attention in the vision tower.
      prefill: how some layers of the language model read the prompt; None for exactly.
      cache: through which new tokens see the prompt; None to see all.
      dropping: of image tokens; None to keep all.
    """

    name: str = "exact"
    label: str = "exact"
    strength: str = ""
    tower: Arm = _EXACT
    prefill: NystromPrefill | CentroidPrefill | None = None
    cache: LandmarkCache | None = None
    dropping: ImageDropping | None = None

    @property
    def num_landmarks(self) -> int | None:
        """Of the prompt's tokens, in prefill or in the cache; None where none are."""
        landmarks = self.prefill if isinstance(self.prefill, NystromPrefill) else self.cache
        return None if landmarks is None else landmarks.num_landmarks

    def settings(self, prompts) -> dict:
        """Arguments of `Reader.generate` for a batch.

        A prompt of fewer tokens than landmarks has as many as tokens.
        """
        most = prompts.tokens.shape[1]

        def fitted(settings):
            if getattr(settings, "num_landmarks", 0) <= most:
                return settings
            return dataclasses.replace(settings, num_landmarks=most)

        seed = self.tower.seed
        return dict(
            rng=None if seed is None else jax.random.key(seed),
            dropping=self.dropping,
            prefill=fitted(self.prefill),
            landmark_cache=fitted(self.cache),
        )


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
    arms += _prefill_arms(config.prefill, model.decoder.depth)
    layers = blocks_of(config.landmark_cache.layers, model.decoder.depth)
    for number in config.landmark_cache.num_landmarks:
        cache = LandmarkCache(layers, number)
        arms.append(AnswerArm(f"cache-{number}", _CACHE, str(number), cache=cache))
    for method in config.dropping.methods:
        for kept in config.dropping.kept:
            arms += _dropping_arms(method, kept, config.dropping)
    return arms


def _prefill_arms(prefill, depth):
    """An arm for each number of landmarks, and for each length of runs."""
    layers, arms = blocks_of(prefill.layers, depth), []
    for number in prefill.num_landmarks:
        settings = NystromPrefill(layers, number)
        arms.append(AnswerArm(f"prefill-fna-{number}", _PREFILL_FNA, str(number), prefill=settings))
    for length in prefill.run_lengths:
        settings = CentroidPrefill(layers, length)
        arms.append(
            AnswerArm(f"prefill-runs-{length}", _PREFILL_RUNS, f"of {length}", prefill=settings)
        )
    return arms


def _dropping_arms(method, kept, settings):
    """An arm for each seed of random tokens; of others one."""
    arms = []
    block = settings.block if method == "attention" else None  # others go in front of all
    for seed in settings.seeds if method == "random" else (0,):
        dropping = ImageDropping(kept, method, seed, block)
        suffix = f"-seed{seed}" if method == "random" else ""
        name = f"{method}-kept-{kept}{suffix}"
        arms.append(AnswerArm(name, _DROPPING[method], f"{kept} %", dropping=dropping))
    return arms
