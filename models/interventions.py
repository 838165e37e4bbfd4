"""What can be changed in a block's attention, and on which tokens (arXiv 2507.16018)."""

import dataclasses

from fna_jax import FNAConfig, Masking
from fna_jax.config import config_by_block
from fna_jax.masking import check_nystrom_pattern

from .detectors import Detector


@dataclasses.dataclass(frozen=True)
class CancelSuppression:
    """Gives each token back what the others take from its own direction.

    See `fna_jax.suppression_correction`; it needs no token set, and exact attention in its block.
    """

    needs_tokens = False


@dataclasses.dataclass(frozen=True)
class Interventions:
    """Of one view of a model, hashable.

    Attributes:
      by_block: (block, `Masking` or `CancelSuppression`) pairs, ascending.
      detector: finds the token set T in each batch; None where it is an argument or not needed.
    """

    by_block: tuple[tuple[int, Masking | CancelSuppression], ...] = ()
    detector: Detector | None = None

    @property
    def need_tokens(self) -> bool:
        """Whether any of them speaks of a token set."""
        return any(intervention.needs_tokens for _, intervention in self.by_block)


def checked_interventions(interventions, detector, *, depth) -> Interventions:
    """Of a dictionary from block to intervention.

    Raises:
      TypeError: no dictionary, or something else than an intervention or a detector in its place.
      ValueError: blocks that do not exist, or a detector whose tokens nothing would use.
    """
    if not isinstance(interventions, dict):
        raise TypeError(f"expected {{block: intervention}}, got {interventions!r}")
    for block, intervention in interventions.items():
        check_block(block, depth)
        if not isinstance(intervention, Masking | CancelSuppression):
            raise TypeError(
                f"block {block}: expected a fna_jax.Masking or models.CancelSuppression(), "
                f"got {intervention!r}"
            )
    checked = Interventions(
        tuple(sorted(interventions.items(), key=lambda pair: pair[0])), detector
    )
    if detector is not None:
        check_detector(detector, depth)
        if not checked.need_tokens:
            raise ValueError(f"{detector} finds tokens, but no intervention speaks of any: drop it")
    return checked


def check_detector(detector, depth):
    """Raises TypeError for what is no detector, ValueError for blocks that do not exist."""
    if not isinstance(detector, Detector):
        raise TypeError(f"expected a detector of models.detectors, got {detector!r}")
    check_block(detector.block, depth)


def check_block(block, depth):
    """Raises ValueError for a number that is not one of a vision encoder's blocks."""
    if isinstance(block, bool) or not isinstance(block, int) or not 0 <= block < depth:
        raise ValueError(f"the vision encoder has blocks 0 to {depth - 1}, got {block!r}")


def check_with_fna(fna: tuple[FNAConfig, ...], interventions: Interventions):
    """Raises ValueError for an intervention that an approximated block cannot honour."""
    approximated = config_by_block(fna)
    for block, intervention in interventions.by_block:
        if block not in approximated:
            continue
        if approximated[block].approximation == "centroid":
            raise ValueError(
                f"block {block} runs centroid attention, in which no single token can be masked; "
                "keep exact attention or FNA there"
            )
        if isinstance(intervention, CancelSuppression):
            raise ValueError(
                f"block {block} runs FNA, which forms no attention matrix to cancel suppression "
                "in; keep exact attention there"
            )
        check_nystrom_pattern(intervention)


def check_reduction(reduction, fna, interventions: Interventions):
    """Raises ValueError where tokens are taken away in a view that does something else, too."""
    if reduction is None or (not fna and interventions == Interventions()):
        return
    raise ValueError(
        f"{type(reduction).__name__} takes tokens away, and "
        f"{'approximate attention' if fna else 'an intervention'} needs all of them: choose one "
        "(models.with_fewer_tokens(model, None) gives them back)"
    )
