"""The vision tower of SigLIP and SigLIP 2 alone, with or without a classifier on it."""

import dataclasses

from flax import nnx

from . import siglip
from .configs import ModelConfig, check_not_negative
from .siglip import SigLIPVisionConfig, SigLIPVisionTower
from .vit import ClassifiesPooled


@dataclasses.dataclass(frozen=True)
class SigLIPVisionModelConfig(SigLIPVisionConfig, ModelConfig):
    """A SigLIP's vision tower.

    Attributes:
      num_classes: of the linear classifier; 0 for none.
    """

    num_classes: int = 0

    def __post_init__(self):
        SigLIPVisionConfig.__post_init__(self)
        ModelConfig.__post_init__(self)
        check_not_negative(self, "num_classes")


def _towers():
    """The released towers by name; SigLIP 2 has some of the first SigLIP's."""
    names = {}
    for name, config in siglip.VARIANTS.items():
        if "i18n" not in name:  # which tells of the texts
            names.setdefault(config.vision, f"{name}-vision")
    fields = [field.name for field in dataclasses.fields(SigLIPVisionConfig)]
    return {
        name: SigLIPVisionModelConfig(**{field: getattr(tower, field) for field in fields})
        for tower, name in names.items()
    }


VARIANTS = _towers()


class SigLIPVisionModel(ClassifiesPooled, SigLIPVisionTower):
    """The tower with exact attention; `models.with_attention` gives a view that runs FNA."""

    def __init__(self, config: SigLIPVisionModelConfig, *, rngs):
        dtypes = config.dtypes()
        super().__init__(config, **dtypes, rngs=rngs)
        if config.num_classes:
            width = config.encoder.width
            self.head = nnx.Linear(width, config.num_classes, **dtypes, rngs=rngs)
