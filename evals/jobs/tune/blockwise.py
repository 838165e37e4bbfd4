"""Errors of many attentions in many blocks, with one small program for each attention.

The blocks of a vision tower are alike, so a block with some attention is compiled once, and runs in
any place: no choice of attentions for the whole tower costs another compilation.

Shape letters: B images of a batch, N tokens, C width, K candidates, P embedding.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx

from evals.tasks.fidelity import image_embedding
from models.attends import ApproximateAttention, Attended, Record, attend_exactly, relative_error
from models.registry import vision_tower

_EXACT = ()  # compares nothing with exact attention, which runs


class Errors(typing.NamedTuple):
    """Of candidates in blocks, means over images.

    Attributes:
      of_layers: `[depth, K]`, of the attention output on the exact inputs.
      predicted: `[depth, K]`, of the embedding, if only that block is approximated.
    """

    of_layers: np.ndarray
    predicted: np.ndarray


class Blockwise:
    """A model's vision tower, block by block, on some batches of images.

    Attributes:
      depth: its blocks.
    """

    def __init__(self, model, batches):
        """Of a model with exact attention and `evals.data.Batch`es, which are kept."""
        self._model, self._batches = nnx.split(model), batches
        self._blocks = [nnx.split(block) for block in vision_tower(model).encoder.blocks]
        self._exact = [None] * len(batches)  # embeddings [B, P], once computed
        self.depth = len(self._blocks)

    def errors(self, candidates) -> Errors:
        """The `Errors` of K FNAConfigs, whose layers mean nothing here.

        A layer's error is measured for all of them, that of the embedding for the most accurate in
        each block; those of the others are taken to be as much larger as their layer's.
        """
        found = []
        blocks = len(self._batches) * self.depth
        with tqdm.tqdm(total=blocks, desc="comparing", unit="block", leave=False) as bar:
            for number, batch in enumerate(self._batches):
                inputs, of_layers = [_embed(*self._model, batch.images)], []
                for block in range(self.depth):
                    x, errors = self._step(inputs[-1], batch, block, tuple(candidates))
                    inputs.append(x)
                    of_layers.append(batch.select(errors.T).mean(axis=0))
                self._exact[number] = _finish(*self._model, inputs.pop())
                of_layers, predicted = np.array(of_layers), np.zeros((self.depth, len(candidates)))
                for block, x in enumerate(inputs):
                    best = of_layers[block].argmin()
                    x = self._step(x, batch, block, candidates[best])[0]
                    error = self._error(x, number, [_EXACT] * (self.depth - block - 1)).mean()
                    # Where the best one is exact the layers' errors are as good a guess as any.
                    least = of_layers[block, best]
                    predicted[block] = of_layers[block] * (error / least if least else 1)
                    bar.update()
                found.append((of_layers, predicted))
        weights = [batch.real.sum() for batch in self._batches]
        return Errors(*(np.average(parts, axis=0, weights=weights) for parts in zip(*found)))

    def embedding_error(self, choice) -> float:
        """The relative error of the embedding with one FNAConfig, or None, for each block.

        To be called after `errors`. The mean over images.
        """
        attentions = [_EXACT if fna is None else fna for fna in choice]
        errors = [
            self._error(_embed(*self._model, batch.images), number, attentions)
            for number, batch in enumerate(self._batches)
        ]
        return float(np.concatenate(errors).mean())

    def _error(self, x, number, attentions):
        """Of the embeddings of a batch `[B']`, from tokens x in front of the last blocks."""
        batch, first = self._batches[number], self.depth - len(attentions)
        for block, attention in enumerate(attentions, start=first):
            x = self._step(x, batch, block, attention)[0]
        return batch.select(relative_error(_finish(*self._model, x), self._exact[number]))

    def _step(self, x, batch, block, attention):
        blockdef, state = self._blocks[block]
        return _run_block(
            self._model[0], blockdef, attention, self._model[1], state, x, batch.images
        )


@functools.partial(jax.jit, static_argnums=0)
def _embed(graphdef, state, images):
    return vision_tower(nnx.merge(graphdef, state)).embed(images)


@functools.partial(jax.jit, static_argnums=0)
def _finish(graphdef, state, x):
    model = nnx.merge(graphdef, state)
    return image_embedding(model, vision_tower(model).finish(x)[1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _run_block(graphdef, blockdef, attention, state, block_state, x, images):
    """x `[B, N, C]` after a block, and the layer errors `[K, B]`.

    Args:
      graphdef, blockdef: of the model and of the block.
      attention: an FNAConfig, and there are no errors; or a tuple of K of them, to compare with
        exact attention, which runs.
      state, block_state: of the model and of the block.
      x: in front of it.
      images: whose size decides about positions.
    """
    tower = vision_tower(nnx.merge(graphdef, state))
    grid = tower.patch_embedding.grid(images)
    of_tower = dict(place=0, grid=grid, num_prefix=tower.num_prefix, rng=None, compare=False)
    if isinstance(attention, tuple):
        attend = _comparing([ApproximateAttention(fna, **of_tower) for fna in attention])
    else:
        attend = ApproximateAttention(attention, **of_tower)
    (attend,) = tower.position_attends([attend], images)
    x, _, record = nnx.merge(blockdef, block_state)(x, (None,), attend)
    return x, record.error


def _comparing(attends):
    """Exact attention, with the relative errors of others, `[K, B]`, in its record."""

    def attend(x, *states_and_landmarks):
        exact = attend_exactly(x, *states_and_landmarks).out
        errors = [relative_error(other(x, *states_and_landmarks).out, exact) for other in attends]
        error = jnp.stack(errors) if errors else None
        return Attended(exact, states_and_landmarks[-1], record=Record(error=error))

    return attend
