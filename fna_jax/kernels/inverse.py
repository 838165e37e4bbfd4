"""The Newton–Schulz iteration in one kernel for NVIDIA GPUs, instead of some forty.

Shape letters: B kernels, S landmarks.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


def newton_schulz(kernel, *, steps, interpret=False):
    """`fna_jax.newton_schulz_inverse` of kernels float32 `[..., S, S]`, S at most 64.

    Args:
      kernel: A, whose rows sum to one.
      steps: how many.
      interpret: run on any device, slowly.
    """
    size = kernel.shape[-1]
    lanes = max(pl.next_power_of_2(size), 16)
    # An identity beside A changes neither the iteration nor the norm: A's column sums average one.
    filled = jnp.eye(lanes, dtype=kernel.dtype)
    filled = jnp.broadcast_to(filled, (*kernel.shape[:-2], lanes, lanes))
    filled = filled.at[..., :size, :size].set(kernel).reshape(-1, lanes, lanes)
    matrix = pl.BlockSpec((None, lanes, lanes), lambda index: (index, 0, 0))
    inverse = pl.pallas_call(
        functools.partial(_iterate, steps=steps),
        grid=(filled.shape[0],),
        in_specs=[matrix],
        out_specs=matrix,
        out_shape=jax.ShapeDtypeStruct(filled.shape, filled.dtype),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=1),  # 4 warps spill: 2 ms
        interpret=interpret,
    )(filled)
    return inverse[:, :size, :size].reshape(kernel.shape)


def _iterate(kernel, inverse, *, steps):
    matrix = kernel[...]
    positions = jnp.arange(matrix.shape[0])
    eye = (positions[:, None] == positions[None]).astype(matrix.dtype)
    matmul = functools.partial(triton.dot, precision=jax.lax.Precision.HIGHEST)

    def step(_, inverse):
        product = matmul(matrix, inverse)
        inner = 15 * eye - matmul(product, 7 * eye - product)
        return 0.25 * matmul(inverse, 13 * eye - matmul(product, inner))

    norm = jnp.max(jnp.sum(matrix, axis=0))
    inverse[...] = jax.lax.fori_loop(0, steps, step, matrix.T / norm)
