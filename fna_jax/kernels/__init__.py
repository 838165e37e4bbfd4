"""Kernels in Pallas for where XLA's own are measured to be slower, and when they can run.

On TPUs that is estimated from the compiler's instructions. The kernels compute what
`fna_jax.softmax`, `near_field`, `landmarks` and `nystrom` do in jax.numpy, which is what they are
tested against, and what they are differentiated as.
"""

import re

import jax


def gpu_obstacle(*arrays):
    """Why no kernel for NVIDIA GPUs can run on these arrays, or None.

    A kernel does not know how to be split over devices, so it runs where there is one.
    """
    return nvidia_obstacle() or _obstacle(*arrays)


def nvidia_obstacle():
    """Why the chosen device runs no kernel for NVIDIA GPUs, also of others' making, or None."""
    if (compute_capability(device := chosen_device()) or 0) < 8.0:
        return f"it needs an NVIDIA GPU of compute capability 8.0, this is {device}"
    return None


def tpu_obstacle(*arrays):
    """Why no kernel for TPUs can run on these arrays, queries, keys and values, or None.

    It runs where there is one device, or inside a `jax.shard_map` over all axes of the mesh, where
    arrays are what one device has. Its products are exact in bfloat16, and of float32 take one pass
    of bfloat16, as everywhere on a TPU unless more is asked for.
    """
    if (device := chosen_device()).platform != "tpu":
        return f"it needs a TPU, this is {device}"
    mesh = jax.sharding.get_abstract_mesh()
    of_one = mesh.manual_axes and {*mesh.manual_axes} == {*mesh.axis_names}
    if obstacle := _obstacle(*arrays, of_one=of_one):
        return obstacle
    dtypes = {x.dtype.name for x in arrays}
    if dtypes not in ({"bfloat16"}, {"float32"}):
        return f"it needs bfloat16 or float32, got {', '.join(sorted(dtypes))}"
    if dtypes == {"float32"} and jax.config.jax_default_matmul_precision is not None:
        return "it makes products of float32 in one pass, whatever is asked for"
    return None


def chosen_device():
    """The device that kernels are chosen for: the default one."""
    default = jax.config.jax_default_device  # a device, or the name of a platform
    named = default is None or isinstance(default, str)
    return jax.local_devices(backend=default)[0] if named else default


def _obstacle(*arrays, of_one=False):
    """What keeps a kernel of any device from these arrays, or None.

    Args:
      of_one: whether one device is known to have them, however many there are.
    """
    several = jax.device_count() > 1 or jax.sharding.get_abstract_mesh().manual_axes
    if several and not of_one:
        return f"it runs on one device, outside jax.shard_map, and there are {jax.device_count()}"
    if not all(isinstance(size, int) for x in arrays for size in x.shape):
        return "it needs sizes that are known"
    if any(0 in x.shape for x in arrays):
        return "there is nothing to compute"
    return None


def compute_capability(device):
    """As of NVIDIA's GPUs, such as 9.0; None of other devices, also AMD's "gfx90a"."""
    capability = str(getattr(device, "compute_capability", ""))
    return float(capability) if re.fullmatch(r"\d+\.\d+", capability) else None


def differentiated_as(plain, fused):
    """The function `fused`, whose derivatives of every order are those of `plain`."""
    fused = jax.custom_jvp(fused)

    @fused.defjvp
    def _(primals, tangents):
        return fused(*primals), jax.jvp(plain, primals, tangents)[1]

    return fused
