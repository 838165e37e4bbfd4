"""One mesh over every device of every process: data parallel, with the numbers of one device."""

import functools

import jax
import numpy as np
import tqdm
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from evals.data import batches

AXIS = "data"


def data_parallel(function, model):
    """`run(inputs, rng) -> outputs` for a `function(model, inputs, rng) -> outputs`, compiled.

    Inputs and outputs are trees of arrays `[B, …]`, one entry per example, independent of each
    other; each device computes its own. `run` takes this process's part of the examples, and fills
    it up with zeros where the devices do not divide it.

    Args:
      function: hashable; the same one with an equal model compiles once.
      model: an nnx module, or a tuple of some. Its weights go to every device.
    """
    graphdef, state = nnx.split(model)
    state = put(state, P())

    def run(inputs, rng=None):
        fill = lambda x: _filled(x, jax.local_device_count())
        inputs = put(jax.tree.map(fill, inputs), P(AXIS))
        return _run(function, graphdef, state, inputs, rng)

    return run


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(function, graphdef, state, inputs, rng):
    compute = lambda state, inputs: function(nnx.merge(graphdef, state), inputs, rng)
    # Each device runs the program that one device would. With a key, which draws for the whole
    # batch, XLA splits the program instead.
    if rng is None and jax.device_count() > 1:
        specs = dict(in_specs=(P(), P(AXIS)), out_specs=P(AXIS))
        compute = jax.shard_map(compute, mesh=mesh(), check_vma=False, **specs)
    return compute(state, inputs)


def over_batches(
    run,
    images,
    preprocess,
    batch_size,
    *,
    rng=None,
    skipped=None,
    start=0,
    workers=None,
    desc="images",
):
    """Yields, batch by batch, which images opened, int `[M']`, and their outputs, `[M', …]`.

    In memory of the host, of every process. The next batch is under way while one is looked at.

    Args:
      run: of `data_parallel`.
      images, preprocess, skipped, start, workers: as in `evals.data.batches`.
      batch_size: images per step, made `fitting`. Random landmarks depend on it.
      rng: a key; that of step k is folded with k.
      desc: what the bar says.
    """
    batch_size = fitting(batch_size, len(images))
    part = jax.process_index(), jax.process_count()
    options = dict(skipped=skipped, part=part, start=start, workers=workers)
    reader = batches(images, preprocess, batch_size, **options)
    count = dict(total=len(images), initial=start * batch_size, unit="img")
    bar = tqdm.tqdm(desc=desc, **count, leave=False, mininterval=1)

    def finish(step):
        rows, outputs = gather(step)
        bar.update(int(np.sum(rows >= 0)))
        if (rows >= 0).any():
            yield rows[rows >= 0], jax.tree.map(lambda x: x[rows >= 0], outputs)

    with bar:
        index, pending = start - 1, None
        for batch in reader:  # of one process, a batch in which no image opens is left out
            index = batch.rows.max() // batch_size if batch.real.any() else index + 1
            key = None if rng is None else jax.random.fold_in(rng, index)
            rows = _filled(batch.rows, jax.local_device_count(), empty=-1)
            step = put(rows, P(AXIS)), run(batch.images, key)
            if pending is not None:
                yield from finish(pending)
            pending = step
        if pending is not None:
            yield from finish(pending)


def fitting(batch_size, num_images) -> int:
    """The images per step: no more than there are; several processes share them evenly."""
    batch_size = min(batch_size, num_images)
    if jax.process_count() == 1:
        return batch_size
    return _round_up(batch_size, jax.device_count())


def joined(parts):
    """Which images opened and their outputs, of all batches, from the pairs of each."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)


def own_slots(tree):
    """Of arrays `[B, …]` that all processes have, filled up to a multiple of the devices: a part.

    The zeros at the end of the last part are empty slots.
    """
    if jax.device_count() == 1:
        return tree
    index, count = jax.process_index(), jax.process_count()
    filled = jax.tree.map(lambda x: _filled(np.asarray(x), jax.device_count()), tree)
    return jax.tree.map(lambda x: np.split(x, count)[index], filled)


@functools.cache
def mesh() -> Mesh:
    """All devices of all processes along one axis, those of a process side by side."""
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def put(tree, spec):
    """The arrays on the mesh: `P()` copies them to every device, `P(AXIS)` splits them.

    What is split are the slots of this process. On one device it does nothing.
    """
    if jax.device_count() == 1:
        return tree
    sharding = NamedSharding(mesh(), spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    place = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
    return jax.tree.map(place, tree)


def gather(tree):
    """Arrays of the mesh, whole, in memory of the host, of every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _filled(x, multiple, *, empty=0):
    """x `[B, …]` with empty slots at its end, to a multiple of that."""
    missing = _round_up(len(x), multiple) - len(x)
    if not missing:
        return x
    return np.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), constant_values=empty)


def _round_up(number, multiple):
    return -(-number // multiple) * multiple
