"""What kernels for TPUs share: the sizes of registers and memory, products, and their results."""

import functools
import re

import jax
import jax.numpy as jnp

from fna_jax.kernels import chosen_device

LANES, ROWS, PACKED = 128, 8, 16  # of a register; its rows in half precision

product = functools.partial(
    jax.lax.dot_general,
    precision=jax.lax.Precision.DEFAULT,  # exact in half precision
    preferred_element_type=jnp.float32,
)


def whole(size, part):
    """The least multiple of a part that has this size."""
    return -(-size // part) * part


def vector_memory():
    """Bytes of vector memory that a program may have on the chosen TPU; the rest is for XLA."""
    kind = chosen_device().device_kind
    if re.match(r"TPU v[234]\b", kind):
        return 14 * 2**20
    return (100 if kind in ("TPU v5 lite", "TPU v6 lite") else 48) * 2**20


def output_like(x, shape, dtype):
    """What a kernel gives of such a shape, on the axes of a mesh that x varies over."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)
