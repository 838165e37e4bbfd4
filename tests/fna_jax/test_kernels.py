"""The kernels, interpreted, against the forms in jax.numpy that they stand for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import centroid_attention, exact_attention, farthest_point_sampling, fused, near_field
from fna_jax.kernels import (
    compute_capability,
    differentiated_as,
    gpu_obstacle,
    grid,
    near,
    rows,
    tpu_obstacle,
)
from fna_jax.kernels.farthest import farthest_points
from fna_jax.kernels.flash import flash_attention
from fna_jax.kernels.grid import grid_attention
from fna_jax.kernels.inverse import newton_schulz
from fna_jax.kernels.rows import row_attention
from fna_jax.softmax import softmax_attention
from fna_jax.windows import Windows
from tests.conftest import few, random_qkv, rel_max_error
from tests.fna_jax.formulas import inverse_of, softmax

plain_attention = jax.jit(functools.partial(softmax_attention, scale=0.3))


def random(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "num_heads", "num_groups", "head_dim", "value_dim"),
    [
        (140, 20, 2, 2, 16, 16),  # few keys: two blocks of queries
        (20, 200, 2, 1, 24, 8),  # few queries: four parts of the keys; grouped heads; odd lanes
        (1, 1, 1, 1, 4, 4),
    ],
)
def test_flash_attention(num_queries, num_keys, num_heads, num_groups, head_dim, value_dim):
    query = random(0, 2, num_queries, num_heads, head_dim)
    key = random(1, 2, num_keys, num_groups, head_dim)
    value = random(2, 2, num_keys, num_groups, value_dim)
    log_mass = random(3, 2, num_keys)
    log_mass[:, 1::3] = -np.inf  # keys that do not take part
    log_mass[0, : num_keys - num_keys // 2] = -np.inf  # a whole block, or all
    kernel = jax.jit(functools.partial(flash_attention, scale=0.3, interpret=True))
    right = plain_attention(query, key, value, log_mass=log_mass)
    np.testing.assert_allclose(kernel(query, key, value, log_mass), right, atol=2e-6)


@pytest.mark.parametrize(
    ("num_queries", "num_keys", "num_heads", "num_groups", "dims", "dtype", "masses", "tolerance"),
    [
        (140, 20, 2, 1, (24, 8), "float32", True, 2e-6),  # rows that fill no register; shared heads
        (5, 300, 2, 2, (8, 16), "bfloat16", False, 2**-7),  # keys in steps; two roundings of 2⁻⁹
        (300, 256, 1, 1, (8, 8), "float32", False, 2e-6),  # nothing behind the last key
    ],
)
def test_row_attention(
    num_queries, num_keys, num_heads, num_groups, dims, dtype, masses, tolerance, monkeypatch
):
    for name in ("_ROWS", "_KEYS"):
        monkeypatch.setattr(rows, name, 2)
    query = random(0, 2, num_queries, num_heads, dims[0]).astype(dtype)
    key, value = (random(i, 2, num_keys, num_groups, dims[i]).astype(dtype) for i in (0, 1))
    log_mass = None
    if masses:
        log_mass = random(3, 2, num_keys)
        log_mass[0] = -np.inf
        log_mass[1, ::3] = -np.inf
    kernel = jax.jit(functools.partial(row_attention, scale=0.3, interpret=True))
    out = kernel(query, key, value, log_mass)
    right = plain_attention(query, key, value, log_mass=log_mass)
    assert out.dtype == right.dtype and np.isfinite(np.asarray(out, np.float32)).all()
    assert rel_max_error(out, right) < tolerance
    if masses:  # of the first image no key has any
        np.testing.assert_array_equal(out[0], 0)


class Chip:
    """What a TPU tells of itself."""

    platform = "tpu"

    def __init__(self, device_kind):
        self.device_kind = device_kind


@pytest.mark.parametrize(
    ("kind", "sizes", "dtype", "says"),
    [
        ("TPU v5", (577, 577), "bfloat16", None),
        ("TPU v5 lite", (64, 16385), "float32", None),
        ("TPU v5 lite", (16385, 64), "bfloat16", "does not pay"),
        ("TPU v6 lite", (197, 197), "bfloat16", "does not pay"),
        ("TPU v5 lite", (577, 577), "float16", "bfloat16 or float32, got float16"),
        ("TPU v5", (1024, 65537), "bfloat16", None),
        ("TPU v5", (1024, 2**17), "bfloat16", "keys of a head do not fit"),
        ("TPU v4", (577, 577), "bfloat16", None),
        ("TPU v4", (1024, 65537), "bfloat16", "keys of a head do not fit"),
    ],
)
def test_a_tpu_has_its_kernel_where_that_pays(kind, sizes, dtype, says, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda backend=None: [Chip(kind)])
    query, key = (jax.ShapeDtypeStruct((2, size, 3, 64), dtype) for size in sizes)
    with jax.default_matmul_precision(None):
        _, obstacle = fused.fused_attention(query, key, key, 0.125, None)
        _, forced = fused.fused_attention(query, key, key, 0.125, None, insisted=True)
    assert obstacle is None if says is None else says in obstacle
    assert forced == (None if says == "does not pay" else obstacle)


@pytest.mark.parametrize("size", [5, 32])
def test_newton_schulz(size):
    kernel = softmax(random(0, 2, 3, size, size))
    fused = jax.jit(functools.partial(newton_schulz, steps=6, interpret=True))
    np.testing.assert_allclose(fused(kernel), inverse_of(kernel), atol=2e-5)


@pytest.mark.parametrize(
    ("num_points", "width", "num_samples"),
    [(150, 70, 20), (7, 3, 7)],  # three blocks of tokens and two of features; more than there are
)
def test_farthest_points(num_points, width, num_samples):
    points = np.round(4 * random(0, 2, num_points, width))  # of integers sums are exact, and tied
    eligible = random(1, 2, num_points) < 0.5
    distance = np.where(eligible, np.float32(np.inf), -np.float32(np.inf))
    kernel = functools.partial(farthest_points, num_samples=num_samples, interpret=True)
    plain = lambda x, e: farthest_point_sampling(x, num_samples, eligible=e)
    np.testing.assert_array_equal(
        jax.jit(jax.vmap(kernel))(points, distance), jax.jit(jax.vmap(plain))(points, eligible)
    )


@pytest.mark.parametrize(
    ("windows", "num_heads", "num_groups", "head_dim", "num_far", "residual", "dtype", "tolerance"),
    [
        # Windows of 2 × 3 patches at most, in registers of 8; two heads in one, of one key head.
        (Windows((3, 5), (2, 2), 1), 2, 1, 64, 3, True, "float32", 2e-6),
        (Windows((2, 9), (1, 1)), 1, 1, 128, 17, False, "float32", 2e-6),
        (Windows((2, 2), (1, 2)), 4, 4, 32, 1, True, "bfloat16", 2**-7),  # two roundings of 2⁻⁹
    ],
)
def test_window_attention(
    windows, num_heads, num_groups, head_dim, num_far, residual, dtype, tolerance
):
    of = lambda seed, *shape: jnp.asarray(random(seed, 2, *shape), dtype)
    num_windows = windows.cut[0] * windows.cut[1]
    query, far = of(0, windows.num_tokens, num_heads * head_dim), (num_far, num_groups, head_dim)
    key, value = (of(seed, windows.num_tokens, num_groups * head_dim) for seed in (1, 2))
    present = random(3, 2, windows.num_tokens) > -1  # some are padding
    far_mass = random(4, 2, num_windows, num_far)
    far_mass[:, 1:, 0] = -np.inf  # a cluster all of whose tokens are near
    means = of(5, num_windows, num_heads, head_dim), of(6, num_windows, num_heads, head_dim)
    states = query, key, value, present, of(7, *far), of(8, *far), far_mass
    states += (means if residual else None,)
    options = dict(scale=0.3, windows=windows)
    right = jax.jit(functools.partial(near_field.window_attention, **options))(*states)
    kernel = functools.partial(near.window_attention, **options, interpret=True)
    out = jax.jit(kernel)(*states)
    assert out.dtype == right.dtype and rel_max_error(out, right) < tolerance


def test_near_fields_that_do_not_fit_a_kernel_have_none():
    width = lambda *heads, side, dtype="bfloat16": near.program_width(
        *heads, 64, jnp.dtype(dtype), Windows((side, side), (1, 1))
    )
    assert width(16, 64, side=8) == 1024 and width(20, 64, side=8) == 640
    assert width(16, 64, side=24) < 1024  # fewer heads at a time
    assert width(16, 64, side=40) is None  # logits of 1,600 queries
    assert width(16, 80, side=8) is None and width(3, 64, side=8) is None


def test_a_near_field_in_a_kernel_is_the_same(monkeypatch):
    """As on a TPU, image by image; with derivatives of the form in jax.numpy."""
    windows = Windows((3, 4), (1, 2), num_prefix=1)
    query, key, value = random_qkv(tokens=13, heads=2, dim=64, kv_heads=1)
    key_mask = np.arange(13) != [[5], [13]]
    cotangent = random(0, *query.shape) * key_mask[..., None, None]
    clusters = windows.clusters((2,))

    def of_query(query):
        options = dict(windows=windows, key_mask=key_mask)
        out = centroid_attention(query, key, value, clusters, **options)
        return jnp.sum(cotangent * out), out

    run = lambda: jax.jit(jax.value_and_grad(lambda x: of_query(x), has_aux=True))(query)
    (_, right), right_slope = run()
    kernel, images = near.window_attention, []

    def interpreted(query, *states, **options):
        images.append(len(query))
        return kernel(query, *states, **options, interpret=True)

    monkeypatch.setattr(near, "window_attention", interpreted)
    monkeypatch.setattr(near_field, "tpu_obstacle", lambda *_: None)
    monkeypatch.setattr(near_field, "_VMEM_STATES", 0)
    with jax.default_matmul_precision(None):  # in float32 the kernel promises none
        (_, out), slope = run()
    assert 1 in images
    real = key_mask[..., None, None]
    assert rel_max_error(out * real, right * real) < 2e-6
    assert rel_max_error(slope, right_slope) < 2e-6


@pytest.mark.parametrize(
    ("windows", "num_heads", "head_dim", "residual", "dtype", "tolerance"),
    few(
        [
            (Windows((4, 64), (2, 2), num_prefix=3), 2, 64, True, "float32", 4e-6),  # two tiles
            (Windows((8, 16), (2, 2), near=1), 4, 32, False, "float32", 4e-6),
            # 4e-3: the plain form's means, weights and output are rounded by 2⁻⁹ elsewhere.
            (Windows((8, 32), (1, 2), num_prefix=1), 1, 128, True, "bfloat16", 2**-6),
        ]
    ),
)
def test_a_whole_grid_in_a_kernel_is_the_same(
    windows, num_heads, head_dim, residual, dtype, tolerance, monkeypatch
):
    tokens = windows.num_tokens
    qkv = [x.astype(dtype) for x in random_qkv(tokens=tokens, heads=num_heads, dim=head_dim)]
    key_mask = np.arange(tokens) % 7 != [[5], [9]]
    real = key_mask[..., None, None]
    clusters, options = windows.clusters((2,)), dict(windows=windows, residual=residual)
    run = lambda: jax.jit(
        lambda *x: centroid_attention(*x, clusters, key_mask=key_mask, **options)
    )(*qkv)
    right = run()
    taken = []

    def interpreted(*states, **options):
        taken.append(states[0].shape)
        return grid_attention(*states, **options, interpret=True)

    monkeypatch.setattr(grid, "grid_attention", interpreted)
    monkeypatch.setattr(near_field, "tpu_obstacle", lambda *_: None)
    with jax.default_matmul_precision(None):
        out = run()
    assert taken and out.dtype == right.dtype
    assert rel_max_error(out * real, right * real) < tolerance


def test_grids_that_do_not_fit_a_kernel_have_none():
    def fits(windows, heads=16, dim=64, kv_heads=None, dtype="bfloat16"):
        of = lambda heads: jax.ShapeDtypeStruct((1, windows.num_tokens, heads, dim), dtype)
        return grid.fits(of(heads), of(kv_heads or heads), 64, windows)

    square = lambda side, cut, **options: Windows((side, side), (cut, cut), **options)
    assert fits(square(64, 8, num_prefix=5)) and fits(square(32, 4, near=1), dtype="float32")
    assert not fits(square(37, 4)) and not fits(square(64, 12)) and not fits(square(8, 1))
    assert not fits(square(64, 8, num_prefix=128)) and not fits(square(256, 32))
    assert not fits(square(64, 8), dim=80) and not fits(square(64, 8), heads=3)
    assert not fits(square(64, 8), kv_heads=8)


def test_derivatives_are_those_of_the_plain_form():
    plain = lambda x, y: jnp.sum(jnp.sin(x) * y)
    fused = differentiated_as(plain, lambda x, y: jnp.float32(7))
    assert fused(1.0, 2.0) == 7
    np.testing.assert_allclose(jax.jit(jax.grad(fused))(1.0, 2.0), 2 * np.cos(1.0), rtol=1e-6)
    tangents = jax.jit(functools.partial(jax.jvp, fused))((1.0, 2.0), (0.5, 3.0))
    np.testing.assert_allclose(tangents, (7, np.cos(1.0) + 3 * np.sin(1.0)), rtol=1e-6)


class Device:
    """What a device tells of itself."""

    def __init__(self, capability):
        self.compute_capability = capability


def test_only_nvidia_gpus_have_a_capability():
    assert compute_capability(Device("9.0")) == 9
    assert compute_capability(Device("gfx90a")) is None
    assert compute_capability(jax.devices("cpu")[0]) is None


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="kernels run on a GPU")
def test_kernels_on_another_device_raise():
    states = [random(0, 1, 5, 2, 4)] * 3
    assert gpu_obstacle(*states) and tpu_obstacle(*states)
    with pytest.raises(ValueError, match=r"'pallas' cannot run: it needs an NVIDIA GPU.*'xla'"):
        exact_attention(*states, implementation="pallas")
