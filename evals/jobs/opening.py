"""What jobs begin and end with: the model of a config, its first images, points and their run."""

import jax
import ml_collections

from evals import data as readers
from evals.data import batches
from evals.data.datasets import open_data
from evals.data.photographs import HALVES, photographs
from evals.running.pretrained import (
    EMBEDDED_MODEL,
    Backbone,
    open_backbone,
    open_pretrained,
)
from evals.running.workdir import ROOT, claim_workdir, environment, run_points
from evals.tasks.table import TASKS
from models.registry import vision_tower

_SCENES = "digit scenes"
_PHOTOGRAPHS = {f"photographs/{half}": half for half in HALVES}
_NUM_SCENES = 64


def open_named(config, how=open_backbone):
    """What `how` opens: the model that a config names, or the embedded one."""
    return how(config.model or str(EMBEDDED_MODEL), config.revision)


def open_model_of(config) -> Backbone:
    """The model of a config, with its text tower if one of its tasks needs that."""
    of_texts = any(TASKS[name].of_texts for name in config.tasks)
    return open_named(config, open_pretrained if of_texts else open_backbone)


def open_data_of(config) -> dict:
    """The data of the tasks of a config by kind; None for what there is none of."""
    return {kind: open_data(kind, config) for kind in {TASKS[name].data for name in config.tasks}}


def image_sources(images) -> tuple[str, ...]:
    """What a config's `images` name: "digit scenes", "photographs/HALF", or folders and files.

    Raises:
      ValueError: it is no text, nor a tuple of some.
    """
    sources = images if isinstance(images, tuple) else (images,)
    if not sources or not all(isinstance(source, str) and source for source in sources):
        raise ValueError(
            f"--config.images must be '{_SCENES}', one of {', '.join(_PHOTOGRAPHS)}, a folder, a "
            f"file, or a tuple of folders and files, got {images!r}"
        )
    return sources


def open_images(config):
    """Paths of the images that a config names, or embedded digit scenes, uint8 arrays.

    Raises:
      FileNotFoundError: a path that does not exist, or a folder without images.
      ValueError: photographs whose package is missing.
    """
    if config.images == _SCENES:
        return readers.multiple_digit_scenes(config.num_images or _NUM_SCENES).images
    if config.images in _PHOTOGRAPHS:
        return photographs(_PHOTOGRAPHS[config.images])[: config.num_images]
    return readers.image_files(config.images, limit=config.num_images)


def first_batch(images, preprocess, batch_size):
    """The first `Batch` in which an image opens; others in it are padding.

    Raises:
      ValueError: none opens.
    """
    skipped = []
    found = next(batches(images, preprocess, batch_size, skipped=skipped, workers=0), None)
    if found is None:
        raise ValueError(f"none of the {len(images)} images opens; the first: {skipped[0]}")
    return found


def num_tokens_of(backbone: Backbone, images) -> int:
    """N of an image of these.

    Raises:
      ValueError: none opens.
    """
    first = first_batch(images, backbone.preprocess, 1)
    return jax.eval_shape(vision_tower(backbone.model).embed, first.images).shape[1]


def check_num_landmarks(number, num_tokens, *, of="an image") -> None:
    """Raises ValueError for more landmarks than tokens."""
    if number > num_tokens:
        raise ValueError(
            f"num_landmarks={number} is more than the {num_tokens} tokens of {of}; choose fewer"
        )


def run_jobs(
    jobs, backbone: Backbone, config: ml_collections.ConfigDict, workdir, **identity
) -> dict:
    """`describe`, and as `points` the records of jobs, kept in `workdir` and found there again.

    Args:
      jobs: as `evals.running.workdir.run_points` takes them.
      backbone: the model that they run.
      config: of the run.
      workdir: its folder.
      **identity: what else must be the same for results to belong together.

    Raises:
      ValueError: the folder holds a run with other settings.
    """
    workdir = claim_workdir(config, workdir, model_sha256=backbone.fingerprint(), **identity)
    return describe(backbone, config) | {"points": run_points(jobs, workdir / "points")}


def describe(backbone, config) -> dict:
    """What the results of a run begin with: `model`, `config`, `environment`."""
    return {
        "model": backbone.name.replace(f"{ROOT}/", ""),
        "config": config.to_dict(),
        "environment": environment(),
    }
