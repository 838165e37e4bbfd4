"""The main job: exact attention and FNA side by side, point by point, resumable."""

import jax
import ml_collections

from evals.data import batches
from evals.data.datasets import open_data
from evals.jobs.arms import METHOD_NAMES, make_arms
from evals.jobs.cost import advice
from evals.jobs.landmark_map import displayable, landmark_points
from evals.jobs.settings import check_choice, check_data_settings, check_tasks
from evals.running.embed import open_embedder
from evals.running.pretrained import EMBEDDED_MODEL, Backbone, open_backbone, open_pretrained
from evals.running.workdir import ROOT, claim_workdir, environment, run_points
from evals.tasks.table import TASKS, jobs_of
from models.registry import vision_config, vision_tower


def evaluate(config: ml_collections.ConfigDict, workdir) -> dict:
    """Every task for every arm; each result is kept in `workdir`, and found there the next time.

    Returns:
      A dictionary: `points` (one record per arm and task), `advice`, `model`, `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, data or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    check_settings(config)
    backbone = open_model_of(config)
    encoder = vision_config(backbone.model.config).encoder
    arms = make_arms(config.fna, encoder.depth)
    data = {kind: open_data(kind, config) for kind in {TASKS[name].data for name in config.tasks}}
    first = next(batches(open_data("images", config)[:1], backbone.preprocess, 1))
    num_tokens = jax.eval_shape(vision_tower(backbone.model).embed, first.images).shape[1]
    _check(arms, backbone, num_tokens)
    workdir = claim_workdir(config, workdir, model_sha256=backbone.fingerprint())
    embedder = open_embedder(config, workdir)
    jobs = jobs_of(arms, config.tasks, backbone, data, embedder, config)
    points = run_points(jobs, workdir / "points")

    fnas = {arm.fna.num_landmarks: arm.fna for arm in arms if arm.fna}
    return describe(backbone, config) | {
        "advice": advice(encoder, num_tokens, [*fnas.values()]) if fnas else "",
        "points": points,
    }


def open_model_of(config) -> Backbone:
    """The model of a config, with its text tower if a task needs that."""
    of_texts = any(TASKS[name].of_texts for name in config.tasks)
    return (open_pretrained if of_texts else open_backbone)(
        config.model or str(EMBEDDED_MODEL), config.revision
    )


def describe(backbone, config) -> dict:
    """What the results of a run begin with: `model`, `config`, `environment`."""
    return {
        "model": backbone.name.replace(f"{ROOT}/", ""),
        "config": config.to_dict(),
        "environment": environment(),
    }


def landmark_examples(config, *, num_images=6):
    """A few images, and where each method puts about 16 landmarks, for `report.draw_landmarks`."""
    backbone = open_model_of(config)
    chosen = open_data("images", config)[:num_images]
    images = next(batches(chosen, backbone.preprocess, len(chosen))).images
    near_16 = min(config.fna.num_landmarks, key=lambda number: abs(number - 16))
    points = {}
    for arm in make_arms(config.fna, vision_config(backbone.model.config).encoder.depth):
        if arm.fna is None or arm.fna.num_landmarks != near_16 or arm.fna.method in points:
            continue
        rng = None if arm.seed is None else jax.random.key(arm.seed)
        view = backbone.with_attention(arm.fna)
        points[arm.fna.method] = landmark_points(view, images, rng=rng)
    titles = {f"{METHOD_NAMES[method]}, S = {near_16}": rows for method, rows in points.items()}
    return displayable(images, backbone.preprocess), titles


def check_settings(config) -> None:
    """Raises ValueError for a number out of range, a repetition, or a setting nothing would use."""
    check_tasks(config.tasks)
    check_data_settings(config)
    for name in ("methods", "num_landmarks", "seeds"):
        check_choice(config.fna[name], f"fna.{name}")


def _check(arms, backbone, num_tokens):
    """Raises ValueError for an arm that the model cannot run, before the first one runs."""
    for arm in arms:
        backbone.with_attention(arm.fna)  # knows the blocks
        if arm.fna and arm.fna.num_landmarks > num_tokens:
            raise ValueError(
                f"num_landmarks={arm.fna.num_landmarks} is more than the {num_tokens} tokens of "
                "an image; choose fewer"
            )
