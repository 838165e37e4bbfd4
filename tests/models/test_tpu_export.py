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
    # One loop per sampling, over its landmarks; none over the batch, heads or tokens.
    assert text.count("stablehlo.while") == samplings
    # Gathered are the landmarks' queries and keys, and one point in a step of sampling.
    gathers = re.findall(r'"stablehlo\.gather".*?-> tensor<([0-9x]+)xf32>', text)
    gathered = [functools.reduce(int.__mul__, map(int, shape.split("x"))) for shape in gathers]
    width = model.config.vision.encoder.width
    assert 0 < len(gathered) <= 2 * 2 + 2 * samplings
    assert max(gathered) == 3 * 8 * width  # not the tokens' number
    # The inverse, in both blocks: four products a step, six steps, in full precision.
    exact = re.findall(r"dot_general.*HIGHEST, HIGHEST.*-> tensor<3x2x8x8xf32>", text)
    assert len(exact) == 2 * (1 + 4 * 6)  # and the kernel
