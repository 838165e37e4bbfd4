"""Errors of many attentions in many blocks, with one small program for each attention.

The blocks of a vision tower are alike, so a block with some attention is compiled once, and runs in
any place: no choice of attentions for the whole tower costs another compilation.

Shape letters: B images of a batch, N tokens, C width, K candidates.
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

OUTPUTS = {  # of a model, its tokens [B, N, C] and pooled state [B, C]: what has an error
    "embedding": lambda model, tokens, pooled: image_embedding(model, pooled),
    "tokens": lambda model, tokens, pooled: tokens,
}
_EXACT = ()  # compares nothing with exact attention, which runs


class Errors(typing.NamedTuple):
    """Of candidates in blocks, means over images.

    Attributes:
      of_layers: `[depth, K]`, of the attention output on the exact inputs.
      predicted: `[depth, K]`, of the output, if only that block is approximated.
    """

    of_layers: np.ndarray
    predicted: np.ndarray


class Blockwise:
    """A model's vision tower, block by block, on some batches of images.

    Attributes:
      depth: its blocks.
    """

    def __init__(self, model, batches, output):
        """Of a model with exact attention, `evals.data.Batch`es, and a name of `OUTPUTS`."""
        self._model, self._batches, self._output = nnx.split(model), batches, output
        self._blocks = [nnx.split(block) for block in vision_tower(model).encoder.blocks]
        self._exact = [None] * len(batches)  # outputs, once computed
        self.depth = len(self._blocks)

    def errors(self, candidates, methods) -> Errors:
        """The `Errors` of K FNAConfigs, whose layers mean nothing here, and the method of each.

        A layer's error is measured for all of them; that of the output for the most accurate of
        each method in each block, and taken to be as much larger for the others as their layer's.
        By method: centroid attention, for one, has the class token right where FNA has not, and in
        the last block a class embedding depends on nothing else.
        """
        members = [np.flatnonzero([m == method for m in methods]) for method in set(methods)]
        found = []
        blocks = len(self._batches) * self.depth
        with tqdm.tqdm(total=blocks, desc="comparing", unit="block", leave=False) as bar:
            for number, batch in enumerate(self._batches):
                inputs, of_layers = [_embed(*self._model, batch.images)], []
                for block in range(self.depth):
                    x, errors = self._step(inputs[-1], batch, block, tuple(candidates))
                    inputs.append(x)
                    of_layers.append(batch.select(errors.T).mean(axis=0))
                self._exact[number] = self._finish(inputs.pop())
                of_layers, predicted = np.array(of_layers), np.zeros((self.depth, len(candidates)))
                for block, x in enumerate(inputs):
                    for of_method in members:
                        layer_errors = of_layers[block, of_method]
                        best = candidates[of_method[layer_errors.argmin()]]
                        rest = [best, *[_EXACT] * (self.depth - block - 1)]
                        error = self._error(x, number, rest).mean()
                        # Where the best is exact the layers' errors are as good a guess as any.
                        scale = error / layer_errors.min() if layer_errors.min() else 1
                        predicted[block, of_method] = scale * layer_errors
                    bar.update()
                found.append((of_layers, predicted))
        weights = [batch.real.sum() for batch in self._batches]
        return Errors(*(np.average(parts, axis=0, weights=weights) for parts in zip(*found)))

    def output_errors(self, choice) -> np.ndarray:
        """The relative errors of the output with one FNAConfig, or None, for each block, `[M]`.

        Of the M images of all batches. To be called after `errors`.
        """
        attentions = [_EXACT if fna is None else fna for fna in choice]
        errors = [
            self._error(_embed(*self._model, batch.images), number, attentions)
            for number, batch in enumerate(self._batches)
        ]
        return np.concatenate(errors)

    def _error(self, x, number, attentions):
        """Of the output of a batch `[B']`, from tokens x in front of the last blocks."""
        batch, first = self._batches[number], self.depth - len(attentions)
        for block, attention in enumerate(attentions, start=first):
            x = self._step(x, batch, block, attention)[0]
        return batch.select(relative_error(self._finish(x), self._exact[number]))

    def _finish(self, x):
        return _finish(*self._model, x, self._output)

    def _step(self, x, batch, block, attention):
        blockdef, state = self._blocks[block]
        return _run_block(
            self._model[0], blockdef, attention, self._model[1], state, x, batch.images
        )


@functools.partial(jax.jit, static_argnums=0)
def _embed(graphdef, state, images):
    return vision_tower(nnx.merge(graphdef, state)).embed(images)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _finish(graphdef, state, x, output):
    model = nnx.merge(graphdef, state)
    return OUTPUTS[output](model, *vision_tower(model).finish(x))


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
