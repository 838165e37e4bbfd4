"""Several processes of one run, on several hosts or one: each runs the whole program.

Each reads its own part of every batch and gets all results (`evals.running.devices`); the first one
alone decides what is done already, writes and prints. When one fails, the others end within a
minute.
"""

import datetime
import functools
import json
import os
import pkgutil

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils

_LAUNCHED = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes were started
_FAREWELL = 20  # seconds that a process waits for the others before it exits, also on an error


def run(task, config, workdir, *, runs) -> None:
    """Prints what a function of config and workdir, named "module:function", returns.

    Without a workdir (None) it is a fresh folder in `runs`.
    """
    initialize()
    if workdir is None:
        now = f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{os.getpid()}"
        workdir = runs / on_first(lambda: now)
    if jax.process_index() > 0:
        tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, disable=True)
    text = pkgutil.resolve_name(task)(config, workdir)
    on_first(lambda: print(text))  # and the others wait for it


def initialize() -> None:
    """Joins the other processes of a run over several hosts, if the environment defines them.

    It does with JAX_COORDINATOR_ADDRESS (HOST:PORT of the first), JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, and under srun or mpirun. Must be called before anything asks for a device.

    Raises:
      ValueError: some of these variables without the others, or out of range.
    """
    launched = any(int(os.environ.get(name, 1)) > 1 for name in _LAUNCHED)
    if "JAX_COORDINATOR_ADDRESS" not in os.environ and not launched:
        return
    number, index = (os.environ.get(f"JAX_{name}") for name in ("NUM_PROCESSES", "PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=None if number is None else int(number),
            process_id=None if index is None else int(index),
            shutdown_timeout_seconds=_FAREWELL,
        )
    except ValueError as error:
        raise ValueError(
            "several processes need JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and "
            f"JAX_PROCESS_ID (from 0), all three: {error}"
        ) from None


def on_first(function):
    """What `function()` returns in the first process, which JSON can hold, in all of them.

    Raises:
      ValueError, OSError: what it raises there; in the others a ValueError that says the same.
    """
    if jax.process_count() == 1:
        return function()
    failure, message = None, b""
    if jax.process_index() == 0:
        try:
            message = json.dumps({"value": function()}).encode()
        except (ValueError, OSError) as error:
            failure, message = error, json.dumps({"error": str(error)}).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    message = np.frombuffer(message.ljust(size), np.uint8)
    answer = json.loads(bytes(multihost_utils.broadcast_one_to_all(message)))
    if "error" in answer:
        raise failure or ValueError(answer["error"])
    return answer["value"]


def broadcast(arrays):
    """A dictionary of arrays that the first process has, or None there, in all of them."""
    if jax.process_count() == 1:
        return arrays
    shapes = on_first(lambda: arrays and {n: (x.shape, x.dtype.name) for n, x in arrays.items()})
    if shapes is None:
        return None
    if arrays is None:
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()}
    return multihost_utils.broadcast_one_to_all(arrays)
