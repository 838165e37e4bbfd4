"""The main job: exact attention and FNA side by side, point by point, resumable."""

import jax
import ml_collections

from evals.data.datasets import open_data
from evals.jobs.arms import METHOD_NAMES, WITHOUT_NUMBER, make_arms
from evals.jobs.cost import advice
from evals.jobs.landmark_map import displayable, landmark_points
from evals.jobs.opening import (
    check_num_landmarks,
    first_batch,
    num_tokens_of,
    open_data_of,
    open_model_of,
    run_jobs,
)
from evals.jobs.settings import check_choice, check_data_settings, check_tasks
from evals.jobs.tuned import TUNED
from evals.running.embed import open_embedder
from evals.tasks.table import jobs_of
from models.registry import vision_config


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
    num_tokens = num_tokens_of(backbone, open_data("images", config))
    for arm in arms:
        arm.view(backbone)  # knows the blocks
        for fna in arm.fnas:
            check_num_landmarks(fna.num_landmarks, num_tokens)
    # Of methods with equal costs one; the tuned settings are named by none of these.
    alike = {
        tuple((one.approximation, one.num_landmarks) for one in arm.fnas)
        + (arm.method == TUNED,): arm.fna
        for arm in arms
        if arm.fna
    }
    embedder, data = open_embedder(config, workdir), open_data_of(config)
    jobs = jobs_of(arms, config.tasks, backbone, data, embedder, config)
    # The file of tuned settings may change where it lies.
    tuned = {arm.method: repr(arm.fna) for arm in arms if arm.method == TUNED}
    results = run_jobs(jobs, backbone, config, workdir, **tuned)
    return results | {"advice": advice(encoder, num_tokens, [*alike.values()])}


def landmark_examples(config, *, num_images=6):
    """A few images and about 16 landmarks of each method of FNA, for `report.draw_landmarks`."""
    backbone = open_model_of(config)
    chosen = open_data("images", config)[:num_images]
    batch = first_batch(chosen, backbone.preprocess, len(chosen))
    images = batch.images[batch.real]
    near_16 = min(config.fna.num_landmarks, key=lambda number: abs(number - 16))
    points = {}
    for arm in make_arms(config.fna, vision_config(backbone.model.config).encoder.depth):
        if arm.method in WITHOUT_NUMBER or not arm.fna:
            continue
        of_fna = arm.fna.approximation == "nystrom"
        if not of_fna or arm.fna.num_landmarks != near_16 or arm.method in points:
            continue
        rng = None if arm.seed is None else jax.random.key(arm.seed)
        view = backbone.with_attention(arm.fna)
        points[arm.method] = landmark_points(view, images, rng=rng)
    titles = {f"{METHOD_NAMES[method]}, S = {near_16}": rows for method, rows in points.items()}
    return displayable(images, backbone.preprocess), titles


def check_settings(config) -> None:
    """Raises ValueError for a number out of range, a repetition, or a setting nothing would use."""
    check_tasks(config.tasks)
    check_data_settings(config)
    # With tuned settings there need be no other method.
    some = () if config.fna.tuned is not None and not config.fna.methods else ("methods",)
    for name in (*some, "num_landmarks", "kept", "seeds"):
        check_choice(config.fna[name], f"fna.{name}")
