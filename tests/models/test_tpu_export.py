"""A whole vision model with FNA, exported for TPUs: what is known to be slow there is not in it."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import export

import models
from fna_jax import FNAConfig
from tests.fna_jax.test_export import assert_portable


@functools.partial(jax.jit, static_argnums=0)
def tokens_of(graphdef, state, images):
    return nnx.merge(graphdef, state)(images).tokens


@pytest.mark.parametrize("resample", [False, True])
def test_a_model_with_fna_exports_for_tpus(small_model, resample):
    model = models.load(small_model)
    fna = FNAConfig((0, 1), num_landmarks=8, resample=resample)
    graphdef, state = nnx.split(models.with_attention(model, fna))
    images = jax.ShapeDtypeStruct((3, 64, 64, 3), jnp.float32)
    text = export.export(tokens_of, platforms=["tpu"])(graphdef, state, images).mlir_module()
    assert_portable(text)
    samplings = 2 if resample else 1
    # A loop per sampling, over its landmarks, and per inverse, over its steps; none over the batch,
    # heads or tokens.
    assert text.count("stablehlo.while") == samplings + 2
    # Gathered are one point in a step of sampling, and which landmarks are real.
    gathers = re.findall(r'"stablehlo\.gather".*?-> tensor<([0-9x]+)xf32>', text)
    gathered = [functools.reduce(int.__mul__, map(int, shape.split("x"))) for shape in gathers]
    width, heads = model.config.vision.encoder.width, model.config.vision.encoder.num_heads
    assert 0 < len(gathered) <= 2 * samplings
    assert max(gathered) <= 3 * width  # not the tokens' number
    # The landmarks' queries and keys are products with ones and zeros, one per block or shared.
    taken = re.findall(rf"dot_general.*HIGHEST, HIGHEST.*-> tensor<3x8x{heads}x\d+xf32>", text)
    assert 2 <= len(taken) <= 2 * 2
    # In full precision: the kernel of each block, and the four products of a step of the inverse.
    exact = re.findall(r"dot_general.*HIGHEST, HIGHEST.*-> tensor<3x2x8x8xf32>", text)
    assert len(exact) == 2 * (1 + 4)
