"""What several test files share: the measure of error, random inputs, and the tiny CLIP."""

import atexit
import gc
import os
import pathlib
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models.registry

# Most of the time goes into compiling programs that run once, and half of that into making them
# fast. XLA's own passes stay; LLVM does less, each program whole rather than in parts for cores
# that have other tests to run, and where jaxlib still has both makers of loops, the older one,
# which compiles twice as fast. 0 in the environment asks for all of it. Other processes inherit it.
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    jax.config.update("jax_disable_most_optimizations", True)
    flags = [os.environ.get("XLA_FLAGS", ""), "--xla_cpu_parallel_codegen_split_count=1"]
    if jax.__version_info__ < (0, 11):  # later ones end at a flag that they do not know
        flags.append("--xla_cpu_use_fusion_emitters=false")
    os.environ["XLA_FLAGS"] = " ".join(flags)

# What one process of a run has compiled, the others find: workers, and programs that tests start.
# It saves compilations only: tracing, and with it what counts traces, is as without it. To keep
# what compiles in no time costs more than it saves.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="fna-jax-compiled-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    for name, value in (
        ("compilation_cache_dir", compiled),
        ("persistent_cache_min_compile_time_secs", 0.1),
        ("persistent_cache_min_entry_size_bytes", -1),
    ):
        os.environ[f"JAX_{name.upper()}"] = str(value)
        jax.config.update(f"jax_{name}", value)

# Tracing makes and drops many objects; to look for cycles every 700 of them takes a tenth of the
# time.
gc.set_threshold(50_000)

REFERENCES = pathlib.Path(__file__).parent / "references"


def pytest_collection_finish():
    """Modules and tests stay to the end: nobody need look for cycles among them."""
    gc.freeze()


def few(cases, everyday=1):
    """Cases for `parametrize`, of which `pytest` runs a few, and `pytest -m slow` the others.

    For what is tried on every family or layout, each of which compiles programs of its own.

    Args:
      cases: values, or tuples of several arguments.
      everyday: how many of the first, or which.
    """
    chosen = lambda i, case: i < everyday if isinstance(everyday, int) else case in everyday
    values = lambda case: case if isinstance(case, tuple) else (case,)
    slow = lambda case: pytest.param(*values(case), marks=pytest.mark.slow)
    return [case if chosen(i, case) else slow(case) for i, case in enumerate(cases)]


def rel_max_error(actual, expected):
    """`max |a − e| / max |e|` in float64, with the shapes equal."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return np.max(np.abs(actual - expected)) / np.max(np.abs(expected))


def random_qkv(seed=0, batch=(2,), tokens=40, heads=2, dim=8, kv_heads=None, dtype=np.float32):
    """Standard normal query, key and value, `[*batch, tokens, heads, dim]`."""
    rng = np.random.default_rng(seed)
    shapes = [(*batch, tokens, n, dim) for n in (heads, kv_heads or heads, kv_heads or heads)]
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def tiny_clip(seed=0, **overrides):
    """A CLIP of 65 vision tokens (class token and 8 × 8 patches) and 3 vision blocks."""
    settings = dict(
        vision=dict(
            image_size=32,
            patch_size=4,
            encoder=dict(width=32, depth=3, num_heads=4, mlp_dim=64),
        ),
        text=dict(
            vocab_size=99,
            context_length=16,
            eos_token_id=98,
            encoder=dict(width=32, depth=2, num_heads=4, mlp_dim=64),
        ),
        projection_dim=24,
    )
    return models.create("clip-vit-b-32", rngs=nnx.Rngs(seed), **{**settings, **overrides})


def with_settings(model, **overrides):
    """`model` with other settings and its own weights, cast to `param_dtype`."""
    config = models.registry.override(model.config, overrides)
    graphdef, state = nnx.split(models.registry.abstract_model(type(model), config))
    cast = lambda x, like: jnp.asarray(np.asarray(x, like.dtype))
    return nnx.merge(graphdef, jax.tree.map(cast, nnx.state(model), state))


def random_images(seed=0, batch=2, height=32, width=32):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, height, width, 3)).astype(np.float32)


@pytest.fixture(autouse=True, scope="session")
def highest_precision():
    """Float32 products are float32 on every device, so that tolerances mean the same.

    Of the session, so that fixtures of a module and its tests share what they compile.
    """
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="session")
def clip():
    """The tiny CLIP. Tests must not change it."""
    return tiny_clip()


@pytest.fixture(scope="session")
def small_model(tmp_path_factory):
    """The directory of a small untrained CLIP for digit scenes."""
    from training.companions import write_companions  # which loads much that most do not need

    folder = tmp_path_factory.mktemp("small")
    encoder = {"width": 32, "depth": 2, "num_heads": 2, "mlp_dim": 32}
    model = models.create(
        "clip-vit-b-32",
        rngs=nnx.Rngs(0),
        vision={"image_size": 64, "patch_size": 8, "encoder": encoder},
        text=dict(vocab_size=22, context_length=32, eos_token_id=2, encoder=encoder | {"depth": 1}),
        projection_dim=16,
    )
    models.save(model, folder / "model", companions=write_companions(folder))
    return folder / "model"
