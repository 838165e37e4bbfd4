"""Qwen3-VL of transformers, and its vision tower, run on images. Needs torch and transformers.

Shape letters: B images of one size, N tokens of each, C width; T tokens of a text.
"""

import functools
import math

import numpy as np

from convert.qwen_vision import PREFIXES, vision_values
from convert.recording import recording
from models.inputs.qwen_images import patches_of


def tower_tensors(tensors) -> dict:
    """Of a checkpoint's tensors those of the tower, by the names that they have in it alone."""
    prefix = next(prefix for prefix in PREFIXES if f"{prefix}pos_embed.weight" in tensors)
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors[name] for name in names}


def open_tower(transformers, values, state, **options):
    """transformers' tower of a checkpoint, of which the language model is not built.

    Args:
      transformers: the module.
      values: the checkpoint's config, that was parsed without an error.
      state: the tower's tensors by name, for torch.
      **options: of `from_pretrained`.
    """
    model_class = transformers.Qwen3VLVisionModel
    config = model_class.config_class.from_dict(vision_values(values))
    return model_class.from_pretrained(None, config=config, state_dict=state, **options).eval()


def run_tower(model, batches) -> list[dict]:
    """Stages of each batch, whose images are one sequence, with patches row by row.

    Args:
      model: of `open_tower`.
      batches: images of one size as the tower here takes them, `[B, height, width, 3]`, or the
        pairs of frames of one video `[B, 2, height, width, 3]`.
    """
    import torch

    patch, size = model.config.patch_size, model.config.spatial_merge_size
    grids = [tuple(x // patch for x in batch.shape[-3:-1]) for batch in batches]
    of_batch = functools.partial(patches_of, patch_size=patch, merge_size=size)
    patches = np.concatenate([of_batch(batch) for batch in batches])
    thw = []
    for batch, grid in zip(batches, grids):
        thw += [(len(batch), *grid)] if batch.ndim == 5 else [(1, *grid)] * len(batch)
    stages = {}
    with recording(model, stages):
        weights = model.patch_embed.proj.weight
        output = model(torch.from_numpy(patches).to(weights.dtype), grid_thw=torch.tensor(thw))
    stages["tokens"] = output.last_hidden_state
    merged = {"merged": output.pooler_output}
    merged |= {f"deepstack {i}": x for i, x in enumerate(output.deepstack_features)}
    found, end = [], 0
    for batch, grid in zip(batches, grids):
        start, end = end, end + len(batch) * math.prod(grid)
        of_patches = {name: x[start:end] for name, x in stages.items()}
        of_squares = {name: x[start // size**2 : end // size**2] for name, x in merged.items()}
        found.append(
            {name: _row_by_row(x, len(batch), grid, size) for name, x in of_patches.items()}
            | {name: x.reshape(len(batch), -1, x.shape[-1]) for name, x in of_squares.items()}
        )
    return found


def inputs_of(config, token_ids, images) -> dict:
    """Arguments of transformers' model beside token ids `[B, T]`: the patches, and which tokens are
    theirs.

    Args:
      config: of the model.
      token_ids: a tensor, with as many image and video tokens as there are squares of patches.
      images: of all texts in their order as the tower here takes one, `[height, width, 3]`, or the
        pairs of frames of a video, `[b, 2, height, width, 3]`.
    """
    import torch

    vision = config.vision_config
    cut = dict(patch_size=vision.patch_size, merge_size=vision.spatial_merge_size)
    inputs = {"mm_token_type_ids": torch.zeros_like(token_ids, dtype=torch.int32)}
    kinds = (
        (config.image_token_id, "pixel_values", "image_grid_thw", 3),
        (config.video_token_id, "pixel_values_videos", "video_grid_thw", 5),
    )
    for kind, (token, patches, grid_thw, ndim) in enumerate(kinds, start=1):
        inputs["mm_token_type_ids"][token_ids == token] = kind
        if not (given := [image for image in images if image.ndim == ndim]):
            continue
        batches = [image[None] if ndim == 3 else image for image in given]
        inputs[patches] = torch.from_numpy(np.concatenate([patches_of(x, **cut) for x in batches]))
        sides = [(len(x), *(side // vision.patch_size for side in x.shape[-3:-1])) for x in batches]
        inputs[grid_thw] = torch.tensor(sides)
    return inputs


def _row_by_row(x, batch, grid, size):
    """Tokens `[B·N, C]` square by square of the mergers as `[B, N, C]` row by row."""
    squares = x.reshape(batch, grid[0] // size, grid[1] // size, size, size, x.shape[-1])
    return squares.transpose(2, 3).reshape(batch, -1, x.shape[-1])
