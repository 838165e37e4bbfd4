"""Vision transformers in Flax nnx whose attention can be swapped for Fast Nyström Attention."""

from flax import nnx

from fna_jax import FNAConfig
from fna_jax.config import config_by_block

from . import detectors, registry
from .captures import Capture
from .checkpoint import load, save
from .interventions import (
    CancelSuppression,
    check_block,
    check_detector,
    check_reduction,
    check_with_fna,
    checked_interventions,
)
from .recommendation import recommended
from .reductions import TokenDropping, TokenMerging
from .registry import create, list_models, vision_tower

__all__ = [
    "CancelSuppression",
    "Capture",
    "TokenDropping",
    "TokenMerging",
    "create",
    "detect",
    "detectors",
    "list_models",
    "load",
    "recommended",
    "save",
    "vision_tower",
    "with_attention",
    "with_fewer_tokens",
    "with_interventions",
]


def with_attention(model, fna):
    """A view of `model` with approximate attention in its vision blocks (None: exact attention).

    The view shares the weights; the model given is not changed.

    Args:
      model: a model, or a view of one.
      fna: an `FNAConfig`, or several for different blocks, or None.

    Raises:
      TypeError: anything else, or a model from elsewhere.
      ValueError: blocks that the model does not have or that two configs name, a class token that
        it lacks, no cluster beside that of the class token, or an intervention of the view that
        cannot be honoured.
    """
    tower = vision_tower(model)
    configs = () if fna is None else tuple(fna) if isinstance(fna, list | tuple) else (fna,)
    for config in configs:
        if not isinstance(config, FNAConfig):
            raise TypeError(f"expected an FNAConfig, several, or None, got {config!r}")
    depth = registry.vision_config(model.config).encoder.depth
    for block, config in config_by_block(configs).items():
        if block >= depth:
            raise ValueError(
                f"the vision encoder has blocks 0 to {depth - 1}, got layers {config.layers}"
            )
        _check_prefix(config, tower.num_prefix)
    check_with_fna(configs, tower.interventions)
    check_reduction(tower.reduction, configs, tower.interventions)
    return nnx.with_attributes(model, fna=configs)


def _check_prefix(config, num_prefix):
    """Raises ValueError for settings that do not go with so many tokens in front of the patches."""
    if config.exclude == "massive_by_attention" and not num_prefix:
        raise ValueError(
            "exclude='massive_by_attention' needs a class token, and this model has none (all "
            "queries in its place would cost what FNA saves); use 'massive_by_norm'"
        )
    alone = num_prefix if config.guarantee_prefix else 0
    of_landmarks = config.approximation == "centroid" and config.partition == "landmarks"
    if of_landmarks and config.num_landmarks <= alone:
        raise ValueError(
            f"num_landmarks={config.num_landmarks} leaves no cluster to the patches, for each of "
            f"the {alone} tokens in front of them has its own: choose more"
        )


def with_interventions(model, interventions: dict, *, detector=None):
    """A view of `model` whose attention is changed in some vision blocks ({}: in none).

    The view shares the weights; the model given is not changed. With a detector the view is
    *adaptive*: in each call it finds the token set of the batch by a pass through the detector's
    blocks, and applies the interventions to it in the next. Nothing is kept between calls.

    Args:
      model: a model, or a view with FNA.
      interventions: `{block: fna_jax.Masking(...)}` or `{block: models.CancelSuppression()}`.
      detector: one of `models.detectors`; without, maskings of a token set are called with
        `tokens=bool[B, N]`.

    Raises:
      TypeError: not a dictionary of interventions, not a detector, or a model from elsewhere.
      ValueError: blocks that the model does not have, a detector that nothing would use, or a
        pattern that FNA cannot honour in a block that runs it.
    """
    tower = vision_tower(model)
    checked = checked_interventions(interventions, detector, depth=len(tower.encoder.blocks))
    check_with_fna(tower.fna, checked)
    check_reduction(tower.reduction, tower.fna, checked)
    return nnx.with_attributes(model, interventions=checked)


def with_fewer_tokens(model, reduction):
    """A view of `model` in whose vision blocks tokens become fewer (None: in none).

    What people would use in place of approximate attention, to compare with. The view shares the
    weights; the model given is not changed.

    Args:
      model: a model, or a view of one.
      reduction: a `models.TokenMerging` or `models.TokenDropping`, or None.

    Raises:
      TypeError: anything else, or a model from elsewhere.
      ValueError: blocks that the model does not have, or a view with approximate attention or
        interventions.
    """
    tower = vision_tower(model)
    if not isinstance(reduction, TokenMerging | TokenDropping | None):
        raise TypeError(f"expected a TokenMerging, a TokenDropping or None, got {reduction!r}")
    for block in () if reduction is None else reduction.layers:
        check_block(block, len(tower.encoder.blocks))
    check_reduction(reduction, tower.fna, tower.interventions)
    return nnx.with_attributes(model, reduction=reduction)


def detect(model, images, detector):
    """The tokens that a detector of `models.detectors` finds in images, bool `[B, N]`.

    The pass runs with exact attention, whatever the view.

    Args:
      model: a model of this zoo.
      images: floats `[B, height, width, 3]`, preprocessed.
      detector: for instance `models.detectors.MassiveByAttention(block=13)`.

    Raises:
      TypeError: a model from elsewhere, or not a detector.
      ValueError: a block that the model does not have.
    """
    tower = vision_tower(model)
    check_detector(detector, len(tower.encoder.blocks))
    return detector(tower, tower.embed(images), images, 0)
