"""Programs compiled for TPUs by libtpu, which needs none, and what they would take there."""

import atexit
import datetime
import functools
import importlib.metadata
import os
import pathlib
import shutil
import tempfile
import time
import unittest.mock

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding

from benchmarks.bundles import DUMP_FLAGS, read_dump
from benchmarks.estimate import CHIPS, estimate

AXIS = "devices"  # of the mesh of a slice


def prepare():
    """Lets libtpu compile without a TPU, before it is loaded. The rest of jax runs on the CPU."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "LIBTPU_INIT_ARGS": DUMP_FLAGS.format(folder=_dump_folder()),
    }
    jax.config.update("jax_platforms", "cpu")
    # What comes from a cache is not compiled, and dumps nothing.
    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_disable_most_optimizations", False)


@functools.cache
def _dump_folder():
    folder = tempfile.mkdtemp(prefix="fna-jax-bundles-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def topology(chip):
    """The devices that programs for a chip are compiled for, a slice of 2 × 2."""
    prepare()
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)


def mesh(chip) -> Mesh:
    """The slice as one axis."""
    return Mesh(np.array(topology(chip).devices), (AXIS,), axis_types=(AxisType.Auto,))


def compile_for(chip, function, specs, split=None) -> dict:
    """The columns of a row: a function compiled for a chip, for arguments of these shapes.

    Args:
      chip: one of `CHIPS`.
      function, specs: what to compile, and its arguments as `jax.ShapeDtypeStruct`.
      split: how all arguments are split over the slice, a `PartitionSpec`; None for one chip.
    """
    device, *others = topology(chip).devices
    sharding = SingleDeviceSharding(device) if split is None else NamedSharding(mesh(chip), split)
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    for file in pathlib.Path(_dump_folder()).iterdir():
        file.unlink()
    count = 1 if split is None else 1 + len(others)
    start = time.perf_counter()
    try:
        # What chooses kernels and parts looks there.
        with (
            jax.default_device(device),
            unittest.mock.patch.object(jax, "device_count", lambda: count),
        ):
            compiled = jax.jit(function).lower(*jax.tree.map(place, specs)).compile()
    except Exception as error:  # whatever the compiler says is the result
        return {"compiles": str(error).splitlines()[0][:200]} | _versions()
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    result = estimate(compiled.as_text(), read_dump(_dump_folder()), CHIPS[chip])
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return {
        "compiles": "yes",
        "estimate_us": round(1e6 * result.seconds, 1),
        "floor_us": round(1e6 * moved / CHIPS[chip].bandwidth, 1),
        "temporary_mb": round(memory.temp_size_in_bytes / 1e6, 1),
        "operations": result.operations,
        "guessed": len(result.guessed),
        "collectives_mb": round(sum(result.collectives.values()) / 1e6, 2),
        "compile_s": round(seconds, 1),
    } | _versions()


def _versions():
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "libtpu": importlib.metadata.version("libtpu")}
