"""What models that answer questions differ in: how their prompts are made and read.

Shape letters: T tiles.
"""

import dataclasses
import math
import typing
from collections.abc import Callable

import jax
import numpy as np

from models import llava, qwen_vl
from models.inputs import prompts, qwen_prompts
from models.registry import vision_tower


@dataclasses.dataclass(frozen=True)
class Reader:
    """The functions of a kind of model.

    Attributes:
      look, lay_out: as in `models.inputs.prompts`.
      embed, generate: as `embed_prompts` and `generate` of `models.llava`.
      num_tokens: of an image, in a prompt; of its config and what `look` gave.
      in_few_shapes: prompts as one of few shapes that many batches have, of them and the batch's
        size.
      num_patches: the fewest that the tower sees of an image, of a `Backbone` and prompts.
      seen: what that is of.
    """

    look: Callable
    lay_out: Callable
    embed: Callable
    generate: Callable
    num_tokens: Callable[[typing.Any, typing.Any], int]
    in_few_shapes: Callable
    num_patches: Callable[[typing.Any, typing.Any], int]
    seen: str


def _with_spare_tiles(batch: llava.Prompts, size):
    """The prompts with empty tiles, so that T is a multiple of the number of prompts."""
    spare = -len(batch.tiles) % size
    tiles = np.pad(batch.tiles, [(0, spare), (0, 0), (0, 0), (0, 0)])
    return dataclasses.replace(batch, tiles=tiles)


def _patches_of_a_tile(backbone, batch):
    return jax.eval_shape(vision_tower(backbone.model).embed, batch.tiles).shape[1]


def _patches_of_the_smallest(backbone, batch):
    """By the budget of pixels, or where there is none, in this batch."""
    patch, budget = backbone.model.config.vision.patch_size, backbone.preprocess.budget
    if budget is not None:
        return budget.least // patch**2
    return min(math.prod(image.shape[-3:-1]) for image in batch.images) // patch**2


LLAVA = Reader(
    look=prompts.look,
    lay_out=prompts.lay_out,
    embed=llava.embed_prompts,
    generate=llava.generate,
    num_tokens=lambda config, looked: len(looked[1].index),
    in_few_shapes=_with_spare_tiles,
    num_patches=_patches_of_a_tile,
    seen="a tile",
)
QWEN = Reader(
    look=qwen_prompts.look,
    lay_out=qwen_prompts.lay_out,
    embed=qwen_vl.embed_prompts,
    generate=qwen_vl.generate,
    num_tokens=lambda config, looked: math.prod(qwen_prompts.merged_grid(looked, config)),
    in_few_shapes=lambda batch, size: batch,  # the tower reads images one by one
    num_patches=_patches_of_the_smallest,
    seen="the smallest image",
)
READERS = {llava.LLaVA: LLAVA, qwen_vl.QwenVL: QWEN}


def reader_of(model) -> Reader:
    """That of a model that answers questions."""
    return READERS[type(model)]
