"""The main job: exact attention and FNA side by side, point by point, resumable."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import ml_collections
import numpy as np

from evals import data as readers
from evals.cost import advice
from evals.fidelity import fidelity
from evals.landmark_map import displayable, landmark_points
from evals.pretrained import Pretrained, open_pretrained
from evals.retrieval import retrieval
from evals.workdir import ROOT, claim_workdir, environment, run_points
from evals.zero_shot import zero_shot
from fna_jax import FNAConfig

EMBEDDED_MODEL = ROOT / "checkpoints" / "digit_scenes"


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


@dataclasses.dataclass(frozen=True)
class Datasets:
    """What to evaluate on; a task without data is left out."""

    labelled: readers.LabelledImages | None
    captioned: readers.CaptionedImages | None
    fidelity_images: Sequence


def evaluate(config: ml_collections.ConfigDict, workdir) -> dict:
    """Every task for every arm; each result is kept in `workdir`, and found there the next time.

    Returns:
      A dictionary: `points` (one record per arm and task), `advice`, `model`, `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, data or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    check_settings(config)
    pretrained = open_pretrained(config.model or str(EMBEDDED_MODEL), config.revision)
    arms = make_arms(config.fna, pretrained.model.config.vision.encoder.depth)
    datasets = open_datasets(config)
    image, _ = next(readers.batches(datasets.fidelity_images[:1], pretrained.preprocess, 1))
    num_tokens = pretrained.model.vision.embed(image).shape[1]
    _check(arms, pretrained, num_tokens)
    workdir = claim_workdir(config, workdir, model_sha256=pretrained.fingerprint())
    jobs = [
        (arm.name, task, functools.partial(_run, task, pretrained, arm, datasets, config))
        for arm in arms
        for task in _tasks(arm, datasets)
    ]
    points = run_points(jobs, workdir / "points")

    fnas = {arm.fna.num_landmarks: arm.fna for arm in arms if arm.fna}
    encoder = pretrained.model.config.vision.encoder
    return describe(pretrained, config) | {
        "advice": advice(encoder, num_tokens, [*fnas.values()]) if fnas else "",
        "points": points,
    }


def describe(pretrained, config) -> dict:
    """What the results of a run begin with: `model`, `config`, `environment`."""
    return {
        "model": pretrained.name.replace(f"{ROOT}/", ""),
        "config": config.to_dict(),
        "environment": environment(),
    }


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


def landmark_examples(config, *, num_images=6):
    """A few images, and where each method puts about 16 landmarks, for `report.draw_landmarks`."""
    pretrained = open_pretrained(config.model or str(EMBEDDED_MODEL), config.revision)
    chosen = open_datasets(config).fidelity_images[:num_images]
    images, _ = next(readers.batches(chosen, pretrained.preprocess, len(chosen)))
    near_16 = min(config.fna.num_landmarks, key=lambda number: abs(number - 16))
    points = {}
    for arm in make_arms(config.fna, pretrained.model.config.vision.encoder.depth):
        if arm.fna is None or arm.fna.num_landmarks != near_16 or arm.fna.method in points:
            continue
        rng = None if arm.seed is None else jax.random.key(arm.seed)
        view = pretrained.with_attention(arm.fna)
        points[arm.fna.method] = landmark_points(view, images, rng=rng)
    titles = {f"{METHOD_NAMES[method]}, S = {near_16}": rows for method, rows in points.items()}
    return displayable(images, pretrained.preprocess), titles


def open_datasets(config) -> Datasets:
    """The embedded scenes, an image folder with class folders, or a COCO captions json."""
    labelled = captioned = None
    if config.data == "digit scenes":
        labelled = readers.single_digit_scenes(config.num_labelled_scenes)
        captioned = readers.multiple_digit_scenes(config.num_captioned_scenes)
    elif pathlib.Path(config.data).is_dir():
        labelled = readers.image_folder(
            config.data,
            templates=config.templates or readers.TEMPLATES,
            limit=config.num_images,
        )
    elif pathlib.Path(config.data).is_file():
        captioned = readers.coco_captions(
            config.data, images=config.data_images, limit=config.num_images
        )
    else:
        raise FileNotFoundError(
            f"--config.data={config.data!r} does not exist; give 'digit scenes', a folder with one "
            "folder of images per class, or a COCO captions json"
        )
    images = (captioned or labelled).images
    spread = np.linspace(0, len(images) - 1, min(config.num_fidelity_images, len(images)))
    return Datasets(labelled, captioned, [images[i] for i in spread.astype(int)])


def check_settings(config) -> None:
    """Raises ValueError for a number out of range, a repetition, or a setting nothing would use."""
    check_data_settings(config)
    for name in ("methods", "num_landmarks", "seeds"):
        check_choice(config.fna[name], f"fna.{name}")


def check_choice(values, name) -> None:
    """Raises ValueError for no values, or repeated ones, in the field of that name."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"--config.{name} must be some values, all different: {values}")


def check_data_settings(config) -> None:
    """Raises ValueError for a count below 1, or a setting that the data makes no use of."""
    counts = ["num_labelled_scenes", "num_captioned_scenes", "num_fidelity_images", "batch_size"]
    counts += ["num_images"] if config.num_images is not None else []
    for name in counts:
        if config[name] < 1:
            raise ValueError(f"--config.{name} must be at least 1, got {config[name]}")
    embedded, folder = config.data == "digit scenes", pathlib.Path(config.data).is_dir()
    unused = {
        "templates": not folder,
        "data_images": embedded or folder,
        "num_images": embedded,
    }
    for name, nothing_uses_it in unused.items():
        if config[name] is not None and nothing_uses_it:
            raise ValueError(
                f"--config.{name} was given, but --config.data={config.data!r} makes no use of it"
            )


def _check(arms, pretrained, num_tokens):
    """Raises ValueError for an arm that the model cannot run, before the first one runs."""
    for arm in arms:
        pretrained.with_attention(arm.fna)  # knows the blocks
        if arm.fna and arm.fna.num_landmarks > num_tokens:
            raise ValueError(
                f"num_landmarks={arm.fna.num_landmarks} is more than the {num_tokens} tokens of "
                "an image; choose fewer"
            )


def _tasks(arm, datasets):
    tasks = {
        "zero_shot": datasets.labelled is not None,
        "retrieval": datasets.captioned is not None,
        "fidelity": arm.fna is not None,
    }
    return [task for task, wanted in tasks.items() if wanted]


def _run(task, pretrained: Pretrained, arm, datasets, config):
    function, data = {
        "zero_shot": (zero_shot, datasets.labelled),
        "retrieval": (retrieval, datasets.captioned),
        "fidelity": (fidelity, datasets.fidelity_images),
    }[task]
    rng = None if arm.seed is None else jax.random.key(arm.seed)
    return function(pretrained.with_attention(arm.fna), data, batch_size=config.batch_size, rng=rng)
