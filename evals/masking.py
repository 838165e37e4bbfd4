"""The evals under each masking strategy against the plain model: `--config masking.py`."""

import functools

import jax
import ml_collections
import numpy as np
from flax import nnx

from evals.data import batches
from evals.datasets import open_data
from evals.embed import Embedder
from evals.evaluate import describe
from evals.pretrained import EMBEDDED_MODEL, Pretrained, open_pretrained
from evals.retrieval import retrieval
from evals.settings import check_choice, check_data_settings
from evals.workdir import claim_workdir, run_points
from evals.zero_shot import zero_shot
from fna_jax import Masking
from models import CancelSuppression
from models.attends import relative_error
from models.detectors import ArtifactTokens, AttentionSinks, MassiveByAttention, MassiveByNorm
from models.interventions import check_block
from models.registry import did_you_mean

PLAIN = "plain"
MASSIVE, ARTIFACTS, SINKS = "massive tokens", "artifact tokens", "attention sinks"
STRATEGIES = {  # token set and intervention
    "massive-sink": (MASSIVE, Masking("X->T", "sink")),
    "massive-mask": (MASSIVE, Masking("X->T", "mask")),
    "massive-sink-others": (MASSIVE, Masking("~T->T", "sink")),
    "artifacts-sink": (ARTIFACTS, Masking("X->T", "sink")),
    "sinks-sink": (SINKS, Masking("X->T", "sink")),
    "cancel-suppression": (None, CancelSuppression()),
}
_DETECTORS = {"norm": MassiveByNorm, "attention": MassiveByAttention}


def evaluate_masking(config: ml_collections.ConfigDict, workdir) -> dict:
    """Every task for the plain model and each strategy, resumed from `workdir` like `evaluate`.

    Returns:
      A dictionary: `points` (one record per arm and task), `model`, `config`, `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, data or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    _check_settings(config)
    pretrained = open_pretrained(config.model or str(EMBEDDED_MODEL), config.revision)
    views = make_views(pretrained, config)
    workdir = claim_workdir(config, workdir, model_sha256=pretrained.fingerprint())
    embedder = Embedder(config.batch_size)
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
    return describe(pretrained, config) | {"points": run_points(jobs, workdir / "points")}


def make_views(pretrained: Pretrained, config) -> dict[str, Pretrained]:
    """The plain model, and its adaptive view for each strategy of the settings.

    Raises:
      ValueError: blocks that the model does not have, or that are not in order.
    """
    depth = pretrained.model.config.vision.encoder.depth
    block = depth * 13 // 24 if config.block is None else config.block
    first_block = min(depth * 9 // 24, block) if config.first_block is None else config.first_block
    check_block(block, depth)
    check_block(first_block, depth)
    massive = _DETECTORS[config.detector](block)
    sinks = AttentionSinks(first_block, block, config.max_sinks)
    detectors = {
        MASSIVE: massive,
        SINKS: sinks,
        ARTIFACTS: ArtifactTokens(sinks, massive),
        None: None,
    }
    views = {PLAIN: pretrained}
    for name in config.strategies:
        token_set, intervention = STRATEGIES[name]
        everywhere = dict.fromkeys(range(block, depth), intervention)
        views[name] = pretrained.with_interventions(everywhere, detector=detectors[token_set])
    return views


def masking_effect(pretrained, images, embedder: Embedder) -> dict:
    """The record of a view with interventions: the tokens masked, and what that does.

    `embedding_change` is `‖masked − plain‖ / ‖plain‖` of the image embedding, the mean over images.
    `tokens_masked` is the mean size of the token set, `most_tokens_masked` the largest; a view
    without token set has neither.
    """
    run = functools.partial(_compare, *nnx.split(pretrained.model))
    plain = nnx.split(pretrained.with_interventions({}).model)[0]
    outs = []
    for batch in batches(images, pretrained.preprocess, min(embedder.batch_size, len(images))):
        outs.append(batch.select(run(batch.images, plain=plain)))
    change, masked = jax.tree.map(lambda *parts: np.concatenate(parts), *outs)
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
    for names, known in ((config.strategies, STRATEGIES), ([config.detector], _DETECTORS)):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown {name!r}{did_you_mean(name, known)}")
    if config.max_sinks < 1:
        raise ValueError(f"--config.max_sinks must be at least 1, got {config.max_sinks}")


@functools.partial(jax.jit, static_argnums=0, static_argnames="plain")
def _compare(graphdef, state, images, *, plain):
    """Relative change of the embeddings `[B]`, and the tokens masked, bool `[B, N]`, or None."""
    model = nnx.merge(graphdef, state)
    output = model(images)
    embedding = model.vision_projection(output.pooled)
    change = relative_error(embedding, nnx.merge(plain, state).encode_image(images))
    return change, output.masked
