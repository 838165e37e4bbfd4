"""The evals under each masking strategy against the plain model: `--config masking.py`."""

import functools

import ml_collections

import models
from evals.data.datasets import open_data
from evals.jobs.opening import open_named, run_jobs
from evals.jobs.settings import check_choice, check_data_settings
from evals.jobs.strategies import Strategy
from evals.running.devices import data_parallel, joined, over_batches
from evals.running.embed import Embedder, open_embedder
from evals.running.pretrained import Pretrained, open_pretrained
from evals.tasks.retrieval import retrieval
from evals.tasks.zero_shot import zero_shot
from models.attends import relative_error

PLAIN = "plain"


def evaluate_masking(config: ml_collections.ConfigDict, workdir) -> dict:
    """Every task for the plain model and each strategy, resumed from `workdir` like `evaluate`.

    Returns:
      A dictionary: `points` (one record per arm and task), `model`, `config`, `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, data or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    _check_settings(config)
    pretrained = open_named(config, open_pretrained)
    views = make_views(pretrained, config)
    embedder = open_embedder(config, workdir)
    tasks = {
        "zero_shot": (zero_shot, open_data("labelled", config)),
        "retrieval": (retrieval, open_data("captioned", config)),
        "masking_effect": (masking_effect, open_data("images", config)),
    }
    jobs = [
        (arm, task, functools.partial(function, view, data, embedder))
        for arm, view in views.items()
        for task, (function, data) in tasks.items()
        if data is not None and (arm, task) != (PLAIN, "masking_effect")
    ]
    return run_jobs(jobs, pretrained, config, workdir)


def make_views(pretrained: Pretrained, config) -> dict[str, Pretrained]:
    """The plain model, and its adaptive view for each strategy of the settings.

    Raises:
      ValueError: blocks that the model does not have, or that are not in order.
    """
    where = dict(block=config.block, first_block=config.first_block)
    views = {PLAIN: pretrained}
    for name in config.strategies:
        strategy = Strategy(name, config.detector, max_sinks=config.max_sinks, **where)
        views[name] = strategy.view(pretrained)
    return views


def masking_effect(pretrained, images, embedder: Embedder) -> dict:
    """The record of a view with interventions: the tokens masked, and what that does.

    `embedding_change` is `‖masked − plain‖ / ‖plain‖` of the image embedding, the mean over images.
    `tokens_masked` is the mean size of the token set, `most_tokens_masked` the largest; a view
    without token set has neither.
    """
    run = data_parallel(_compare, pretrained.model)
    parts = over_batches(run, images, pretrained.preprocess, embedder.batch_size, desc="effect")
    _, (change, masked) = joined(parts)
    record = {
        "task": "masking_effect",
        "num_images": len(change),
        "embedding_change": float(change.mean()),
    }
    if masked is not None:
        sizes = masked.sum(axis=1)
        record["tokens_masked"] = float(sizes.mean())
        record["most_tokens_masked"] = int(sizes.max())
        record["num_patches"] = masked.shape[1] - pretrained.model.vision.num_prefix
    return record


def _check_settings(config):
    """Raises ValueError for what is wrong whatever the model."""
    check_data_settings(config)
    check_choice(config.strategies, "strategies")
    for name in config.strategies:
        Strategy(name, config.detector, max_sinks=config.max_sinks)


def _compare(model, images, rng):
    """Relative change of the embeddings `[B]`, and the tokens masked, bool `[B, N]`, or None."""
    output = model(images, rng=rng)
    embedding = model.vision_projection(output.pooled)
    plain = models.with_interventions(model, {})
    return relative_error(embedding, plain.encode_image(images)), output.masked
