"""SigLIP 2 NaFlex of transformers, run on padded patches. Needs torch and transformers."""

import numpy as np

from convert.recording import recording
from models.inputs.naflex_images import Patches


def run(model, patches: Patches) -> dict:
    """Stages of the vision tower; what they hold on padding means nothing.

    Args:
      model: a Siglip2Model.
      patches: in numpy.
    """
    import torch

    inputs = dict(
        pixel_values=torch.from_numpy(patches.pixels),
        pixel_attention_mask=torch.from_numpy(patches.mask.astype(np.int32)),
        spatial_shapes=torch.from_numpy(patches.shapes.astype(np.int64)),
    )
    stages = {}
    with recording(model.vision_model, stages):
        output = model.vision_model(**inputs)
    stages["tokens"], stages["pooled"] = output.last_hidden_state, output.pooler_output
    stages["projected"] = model.get_image_features(**inputs).pooler_output
    return stages
