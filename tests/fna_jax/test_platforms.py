"""What runs on a TPU only is the same, here on the CPU: by other sums, of the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fna_jax import fast_nystrom_attention, nystrom, select_landmarks, softmax
from fna_jax import landmarks as landmarks_module
from tests.conftest import few, random_qkv, rel_max_error
from tests.fna_jax.formulas import inverse_of


@pytest.fixture
def on_tpu(monkeypatch):
    """From here on functions that are traced take what they do on a TPU."""

    def tpu_of(*arguments, default, **platforms):
        return platforms.get("tpu", default)(*arguments)

    return lambda: monkeypatch.setattr(jax.lax, "platform_dependent", tpu_of)


@pytest.mark.parametrize("dtype, lanes, room", [(np.float32, 128, 1), (jnp.bfloat16, 4, 0)])
def test_landmarks_are_the_same(dtype, lanes, room, on_tpu, monkeypatch):
    monkeypatch.setattr(landmarks_module, "_LANES", lanes)
    monkeypatch.setattr(landmarks_module, "_VMEM_POINTS", room)
    points = np.random.default_rng(0).standard_normal((2, 40, 5)).astype(dtype)
    exclude = np.arange(40) % 3 == np.arange(2)[:, None]
    select = lambda: jax.jit(lambda x: select_landmarks(x, 30, exclude=exclude).indices)(points)
    expected = select()  # with empty slots
    on_tpu()
    np.testing.assert_array_equal(select(), expected)


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (jnp.bfloat16, 1e-6)])
def test_fna_is_the_same(dtype, tolerance, on_tpu):
    qkv = [x.astype(dtype) for x in random_qkv(heads=4, kv_heads=2)]
    landmarks = np.asarray([[0, 3, 39, -1], [7, 7, 2, 20]])
    run = lambda: jax.jit(lambda *x: fast_nystrom_attention(*x, landmarks))(*qkv)
    expected = run()
    on_tpu()
    assert rel_max_error(run(), expected) < tolerance


PARTS = {
    "images": softmax.image_by_image,
    "heads": functools.partial(softmax.head_by_head, images=False),
    "heads of images": functools.partial(softmax.head_by_head, images=True),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts_make_the_whole(parts):
    x, y = np.random.default_rng(0).integers(-9, 9, (2, 3, 5, 4, 2))  # exact in any order
    weights = {"image": np.arange(3)}
    attend = lambda x, y, w: jnp.cumsum(x * y, axis=1) * w["image"][:, None, None, None]
    np.testing.assert_array_equal(parts(attend, x, y, weights), attend(x, y, weights))


def noting(taken, name, function, *arguments, **options):
    taken.append((name, options))
    return function(*arguments, **options)


@pytest.mark.parametrize(
    "room, parts",
    [
        (6 * 64, []),
        (3 * 64, [("image_by_image", {})]),
        (1, [("head_by_head", {"images": True})]),
    ],
)
def test_a_tpu_goes_by_images_or_heads_where_logits_do_not_fit(room, parts, on_tpu, monkeypatch):
    taken = []
    for name in ("image_by_image", "head_by_head"):
        noted = functools.partial(noting, taken, name, getattr(softmax, name))
        monkeypatch.setattr(softmax, name, noted)
    monkeypatch.setattr(softmax, "_VMEM_LOGITS", room)
    on_tpu()
    x = jax.ShapeDtypeStruct((2, 8, 3, 2), np.float32)  # 64 logits of each of 3 heads of 2 images
    jax.eval_shape(lambda x: softmax.softmax_attention(x, x, x, scale=1.0), x)
    assert taken == parts


def passes(a, b, precision):
    """A float32 product as a TPU makes it: in one pass of bfloat16, in three, or as it is."""
    exact = lambda a, b: np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    if precision == jax.lax.Precision.HIGHEST:
        return jnp.asarray(exact(a, b), jnp.float32)
    half = lambda x: np.asarray(x, jnp.bfloat16).astype(np.float32)
    coarse, product = (half(a), half(b)), exact(half(a), half(b))
    if precision == jax.lax.Precision.HIGH:
        product += exact(coarse[0], half(b - coarse[1])) + exact(half(a - coarse[0]), coarse[1])
    return jnp.asarray(product, jnp.float32)


@pytest.mark.parametrize(
    "num_landmarks, sharp, like, tolerance",
    # Measured 5.2e-6, 5.7e-6, 6.5e-4 and 3.4e-3; bfloat16 itself rounds the output by 4e-3.
    few([(64, 2, 1, 5e-5), (256, 2, 1, 5e-5), (256, 1, 1, 2e-3), (256, 1, 0.3, 4e-3)]),
)
def test_the_rough_inverse_is_closer_than_half_precision_is(
    num_landmarks, sharp, like, tolerance, monkeypatch
):
    """Of kernels with condition numbers of 1, 7, 20 and 3,000."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, num_landmarks, 64))
    logits = sharp * query @ (like * query + key).T / 8  # like tokens attend to each other
    kernel = np.exp(logits - logits.max(axis=-1, keepdims=True))
    kernel = jnp.asarray(kernel / kernel.sum(axis=-1, keepdims=True), jnp.float32)
    exact = np.asarray(kernel, np.float64) @ (np.asarray(inverse_of(kernel), np.float64) @ value)
    monkeypatch.setattr(jnp, "matmul", passes)
    with jax.disable_jit():
        rough = nystrom._newton_schulz(kernel, nystrom.tpu_passes(6))
    output = np.asarray(kernel, np.float64) @ (np.asarray(rough, np.float64) @ value)
    assert rel_max_error(output, exact) < tolerance
