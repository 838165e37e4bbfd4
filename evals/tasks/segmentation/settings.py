"""How segmentation is done: the features, the windows, and the head's training."""

import dataclasses
import math

from evals.tasks.segmentation.features import LAYERS
from evals.tasks.segmentation.sliding import Sliding
from models.registry import did_you_mean, vision_config


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the task, the fields of a config's `segmentation`.

    Attributes:
      layers: whose patch tokens the head sees, a name of `features.LAYERS`.
      window: pixels of a sliding window's side; None: of the checkpoint's preprocessing.
      stride: from one window to the next, as a part of its side.
      short_side: pixels, of every image once resized; None: the image's own, at least a window's.
      steps, rate, weight_decay: of the head's AdamW.
    """

    layers: str = "last"
    window: int | None = None
    stride: float = 2 / 3
    short_side: int | None = None
    steps: int = 500
    rate: float = 3e-2
    weight_decay: float = 1e-4

    def __post_init__(self):
        if self.layers not in LAYERS:
            hint = did_you_mean(self.layers, LAYERS)
            raise ValueError(f"--config.segmentation.layers: there is no {self.layers!r}{hint}")
        in_range = {
            "stride": 0 < self.stride <= 1,
            "steps": self.steps >= 1,
            "rate": 0 < self.rate < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
        }
        for name in (name for name, holds in in_range.items() if not holds):
            raise ValueError(f"--config.segmentation.{name} is out of range: {getattr(self, name)}")

    def sliding(self, backbone) -> Sliding:
        """The windows for an `evals.running.pretrained.Backbone`.

        Raises:
          ValueError: blocks that it does not have, or a window that the patch does not divide.
        """
        config = vision_config(backbone.model.config)
        if LAYERS[self.layers] > config.encoder.depth:
            raise ValueError(
                f"--config.segmentation.layers={self.layers!r}, but the model has "
                f"{config.encoder.depth} blocks"
            )
        patch, window = config.patch_size, self.window
        if window is None:
            of_checkpoint = backbone.preprocess.crop or backbone.preprocess.resize
            window = min(of_checkpoint or [config.image_size]) // patch * patch
        if window < patch or window % patch:
            raise ValueError(
                f"--config.segmentation.window={window} is no multiple of the patch size {patch}"
            )
        return Sliding(window, max(1, round(self.stride * window)), self.short_side)
