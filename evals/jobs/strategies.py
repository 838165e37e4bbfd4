"""Masking strategies by name: which tokens are found, and what happens to the attention to them."""

import dataclasses

from fna_jax import Masking
from models import CancelSuppression
from models.detectors import ArtifactTokens, AttentionSinks, MassiveByAttention, MassiveByNorm
from models.interventions import check_block
from models.registry import did_you_mean, vision_config

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


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A masking strategy in the blocks from `block` to the last.

    Attributes:
      name: a name of `STRATEGIES`.
      detector: of massive tokens, "norm" or "attention".
      block: where tokens are judged; None: 13/24 of the depth, as in CLIP ViT-L/14.
      first_block: where sinks are masked from to find the next; None: 9/24 of the depth.
      max_sinks: how many sinks are searched for.

    Raises:
      ValueError: a name that does not exist, or `max_sinks` below 1.
    """

    name: str
    detector: str = "norm"
    block: int | None = None
    first_block: int | None = None
    max_sinks: int = 16

    def __post_init__(self):
        for name, known in ((self.name, STRATEGIES), (self.detector, _DETECTORS)):
            if name not in known:
                raise ValueError(f"unknown {name!r}{did_you_mean(name, known)}")
        if self.max_sinks < 1:
            raise ValueError(f"max_sinks must be at least 1, got {self.max_sinks}")

    def view(self, backbone):
        """The adaptive view of an `evals.running.pretrained.Backbone`.

        Raises:
          ValueError: blocks that the model does not have, or that are not in order; an intervention
            that FNA, if the backbone runs it, cannot honour.
        """
        depth = vision_config(backbone.model.config).encoder.depth
        block = depth * 13 // 24 if self.block is None else self.block
        first_block = min(depth * 9 // 24, block) if self.first_block is None else self.first_block
        check_block(block, depth)
        check_block(first_block, depth)
        massive = _DETECTORS[self.detector](block)
        sinks = AttentionSinks(first_block, block, self.max_sinks)
        token_set, intervention = STRATEGIES[self.name]
        detector = {
            MASSIVE: massive,
            SINKS: sinks,
            ARTIFACTS: ArtifactTokens(sinks, massive),
            None: None,
        }[token_set]
        everywhere = dict.fromkeys(range(block, depth), intervention)
        return backbone.with_interventions(everywhere, detector=detector)
