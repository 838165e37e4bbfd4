"""Layers compile for an H100, by jax's plugin for CUDA, without one, and with few launches:
`JAX_PLATFORMS=cpu pytest -m accelerator`."""

import jax
import pytest

from benchmarks import gpu, layers
from benchmarks.launches import count_launches

pytestmark = pytest.mark.accelerator


@pytest.fixture(scope="module")
def programs():
    """Of each arm its program in bfloat16."""
    pytest.importorskip("jax_cuda12_plugin")
    device = gpu.h100()
    sharding = jax.sharding.SingleDeviceSharding(device)
    with jax.default_device(device):
        functions = layers.functions(4097, 64, 64)
        shapes = layers.shapes(2, 4097, 4, 64, 64, "bfloat16", sharding)
        del functions["exact"]  # is cuDNN's, which is not here
        return gpu.compiled_together(functions, *shapes)


@pytest.mark.parametrize("arm", [arm for arm in layers.functions(4097, 64, 64) if arm != "exact"])
def test_layers_compile_for_an_h100(programs, arm):
    program, _ = programs[arm]
    assert count_launches(program.as_text()) <= 130  # a step of sampling is one


def test_no_logits_lie_in_memory(programs):
    program, _ = programs["FNA, q sampled"]
    logits = 2 * 4 * 4097 * 64 * 4  # of 64 landmarks, in float32
    assert program.memory_analysis().temp_size_in_bytes < logits
