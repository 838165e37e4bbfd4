"""CLIP with exact attention and with FNA in its vision blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig
from models.clip import similarity
from tests.conftest import few, random_images, rel_max_error, with_settings

encode_image = nnx.jit(lambda model, images, **kw: model.encode_image(images, **kw))
encode_text = nnx.jit(lambda model, token_ids: model.encode_text(token_ids))
forward = nnx.jit(lambda model, images, **kw: model(images, **kw))
cosines = jax.jit(similarity)
compare = nnx.jit(lambda model, images: model(images, compare=True))

FNA = FNAConfig("1:3", 12, inverse_steps=2)
IMAGES = random_images()


def token_ids(seed=0, eos=98, length=16, at=(5, 9)):
    """Ids below 90, with the end-of-text token where asked."""
    ids = np.random.default_rng(seed).integers(0, 90, (len(at), length)).astype(np.int32)
    ids[np.arange(len(at)), at] = eos
    return ids


# Shapes, sizes, dtypes.


def test_shapes(clip):
    output = forward(clip, IMAGES)
    assert output.tokens.shape == (2, 65, 32) and output.pooled.shape == (2, 32)
    assert output.landmarks is None and output.attention_error is None
    assert encode_image(clip, IMAGES).shape == (2, 24)
    assert encode_text(clip, token_ids()).shape == (2, 24)


def test_embedding_is_the_projected_normalised_class_token(clip):
    output = forward(clip, IMAGES)
    x = np.asarray(output.tokens[:, 0], np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    assert rel_max_error(output.pooled, x) < 5e-6  # scale one and bias zero at creation
    kernel = np.asarray(clip.vision_projection.kernel[...])
    assert rel_max_error(encode_image(clip, IMAGES), x @ kernel) < 5e-6


@pytest.mark.parametrize("fna", [None, FNA])
def test_images_of_other_sizes(clip, fna):
    model = models.with_attention(clip, fna)
    assert forward(model, random_images(height=24, width=48)).tokens.shape == (2, 1 + 6 * 12, 32)


def test_images_of_a_batch_do_not_see_each_other(clip):
    model = models.with_attention(clip, FNA)
    both = encode_image(model, IMAGES)
    other = encode_image(model, np.stack([IMAGES[0], 3 * IMAGES[1]]))
    assert rel_max_error(other[0], both[0]) < 5e-6
    assert rel_max_error(other[1], both[1]) > 1e-2


@pytest.mark.parametrize(
    "height, width, message",
    [
        (30, 32, "height 30 does not divide by the patch size 4; the nearest that do: 28 or 32"),
        (32, 37, "width 37 .* 36 or 40"),
        (32, 3, "width 3 .* the nearest that do: 4$"),
    ],
)
def test_an_image_that_does_not_divide_raises(clip, height, width, message):
    with pytest.raises(ValueError, match=message):
        clip(random_images(height=height, width=width))


@pytest.mark.parametrize(
    "images", [np.zeros((2, 32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.float32),
               np.zeros((2, 3, 32, 32), np.float32)],
)  # fmt: skip
def test_images_of_another_layout_or_dtype_raise(clip, images):
    with pytest.raises(
        ValueError, match=r"preprocessed floats \[B, height, width, 3\], got"
    ) as error:
        clip(images)
    assert str(list(images.shape)) in str(error.value) and str(images.dtype) in str(error.value)


@pytest.mark.parametrize("param_dtype", few(["float32", "bfloat16"]))
def test_bfloat16_is_close_to_float32(clip, param_dtype):
    half = with_settings(clip, dtype="bfloat16", param_dtype=param_dtype)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(half))} == {param_dtype}
    image, text = encode_image(half, IMAGES), encode_text(half, token_ids())
    dtype = lambda model: nnx.eval_shape(lambda model: model(IMAGES).tokens, model).dtype
    assert image.dtype == text.dtype == dtype(half) == jnp.bfloat16
    # bfloat16 has 8 bits of mantissa; measured: 9e-3.
    assert rel_max_error(image, encode_image(clip, IMAGES)) < 0.05
    assert rel_max_error(text, encode_text(clip, token_ids())) < 0.05
    assert dtype(models.with_attention(half, FNA)) == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm_withstands_a_massive_token(clip, dtype):
    x = np.random.default_rng(0).standard_normal((3, 32))
    x[1, 7] = 1e4
    x[2] += 1e3  # a mean much larger than the deviation: E[x²] − E[x]² would cancel
    x = x.astype(dtype)
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    output = np.asarray(nnx.jit(lambda norm, x: norm(x))(clip.vision.encoder.blocks[0].norm1, x))
    assert output.dtype == dtype
    tolerances = [1e-6, 1e-6, 1e-4]  # float32 rounds a mean of 1e3 by 6e-5
    for row, expected, tolerance in zip(output, exact, tolerances):
        rounding = 4e-3 if dtype == jnp.bfloat16 else 0
        assert rel_max_error(row, expected) < tolerance + rounding


# FNA in the vision blocks.


def test_a_view_shares_the_weights_and_leaves_the_model_exact(clip):
    before = encode_image(clip, IMAGES)
    view = models.with_attention(clip, FNA)
    assert view.vision.fna == (FNA,) and clip.vision.fna == ()
    leaves, shared = (jax.tree.leaves(nnx.state(m)) for m in (clip, view))
    assert leaves and all(a is b for a, b in zip(leaves, shared, strict=True))
    assert rel_max_error(encode_image(view, IMAGES), before) > 1e-4
    np.testing.assert_array_equal(encode_image(clip, IMAGES), before)
    back = models.with_attention(view, None)
    np.testing.assert_array_equal(encode_image(back, IMAGES), before)


@pytest.mark.parametrize(
    "features, resample", few([("q", True), ("input", False), ("k", False), ("v", False)])
)
def test_every_token_a_landmark_is_the_exact_model(clip, features, resample):
    fna = FNAConfig("1:3", 65, features=features, resample=resample, inverse_steps=14)
    view = models.with_attention(clip, fna)
    # The float32 inverse of a nearly singular 65 × 65 kernel; measured: 1.5e-5 to 2.7e-5.
    assert rel_max_error(encode_image(view, IMAGES), encode_image(clip, IMAGES)) < 2e-4


def test_the_blocks_share_the_landmarks_of_the_first(clip):
    first, shared, resampled = (
        forward(models.with_attention(clip, fna), IMAGES).landmarks.indices
        for fna in (
            FNAConfig((1,), 12, inverse_steps=2),
            FNA,
            dataclasses.replace(FNA, resample=True),
        )
    )
    np.testing.assert_array_equal(shared, first)
    assert (resampled != first).any()


@pytest.mark.parametrize("method", few(["fps", "random"]))
def test_the_class_token_is_always_a_landmark(clip, method):
    rng = dict(rng=jax.random.key(0)) if method == "random" else {}
    for guarantee_prefix in (True, False):
        fna = FNAConfig((2,), 2, "q", method, guarantee_prefix=guarantee_prefix, inverse_steps=1)
        landmarks = forward(models.with_attention(clip, fna), IMAGES, **rng).landmarks
        assert landmarks.valid.all()
        if guarantee_prefix:
            np.testing.assert_array_equal(landmarks.indices[:, 0], 0)
        elif method == "random":  # farthest points start at token 0 anyway
            assert (landmarks.indices != 0).all()  # for this key


def test_random_landmarks_follow_the_key(clip):
    shared = models.with_attention(clip, FNAConfig("1:3", 12, method="random", inverse_steps=1))
    resampled = models.with_attention(
        clip, FNAConfig("1:3", 12, method="random", resample=True, inverse_steps=1)
    )
    draw = lambda model, seed: forward(model, IMAGES, rng=jax.random.key(seed)).landmarks.indices
    np.testing.assert_array_equal(draw(shared, 0), draw(shared, 0))
    assert (draw(shared, 0) != draw(shared, 1)).any()
    assert (draw(shared, 0) != draw(resampled, 0)).any()  # blocks draw their own


@pytest.mark.parametrize(
    "fna, call, message",
    [
        (FNAConfig("1:3", 66), {}, r"1..65 \(the tokens\), got 66"),
        (FNAConfig("1:3", 12, method="random"), {}, r"random landmarks need a key.*rng="),
        (FNA, dict(rng=jax.random.key(0)), "no block draws random landmarks: drop it"),
        (None, dict(rng=jax.random.key(0)), "no block draws random landmarks: drop it"),
        (None, dict(compare=True), "needs FNA to compare: use models.with_attention"),
    ],
)
def test_arguments_that_nothing_would_use_raise(clip, fna, call, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: models.with_attention(clip, fna)(x, **call).tokens, IMAGES)


def test_with_attention_refuses_blocks_and_configs_that_are_not_there(clip):
    with pytest.raises(ValueError, match=r"blocks 0 to 2, got layers \(2, 3, 4\)"):
        models.with_attention(clip, FNAConfig("2:5", 12))
    with pytest.raises(TypeError, match="expected an FNAConfig, several, or None, got 12"):
        models.with_attention(clip, 12)


def test_compare_reports_the_error_of_each_block_and_runs_exactly(clip):
    output = compare(models.with_attention(clip, FNA), IMAGES)
    exact = forward(clip, IMAGES)
    assert rel_max_error(output.tokens, exact.tokens) < 5e-6
    assert output.attention_error.shape == (2, 2)
    assert output.attention_error.dtype == jnp.float32
    assert (output.attention_error > 1e-3).all() and (output.attention_error < 1).all()
    everything = compare(
        models.with_attention(clip, FNAConfig((2, 1), 65, inverse_steps=14)), IMAGES
    )
    assert everything.attention_error.shape == (2, 2)
    # The float32 inverse of a nearly singular kernel; measured: 7e-5.
    assert everything.attention_error.max() < 5e-4


@pytest.mark.slow
def test_the_gradient_reaches_the_weights_through_fna(clip):
    @nnx.jit
    def gradient(model):
        return nnx.grad(lambda model: jnp.sum(jnp.sin(model.encode_image(IMAGES))))(model)

    gradients = gradient(models.with_attention(clip, FNA))
    for name in ("query", "key", "value", "out"):
        kernel = gradients["vision"]["encoder"]["blocks"][1]["attention"][name]["kernel"][...]
        assert np.isfinite(kernel).all() and np.abs(kernel).max() > 0


# Text.


def test_text_after_the_end_changes_nothing(clip):
    ids = token_ids()
    other = token_ids(seed=1)
    before = np.arange(16) <= np.array([[5], [9]])
    changed = np.where(before, ids, other)
    np.testing.assert_allclose(
        encode_text(clip, changed), encode_text(clip, ids), rtol=1e-5, atol=1e-6
    )
    earlier = ids.copy()
    earlier[:, 2] = (earlier[:, 2] + 1) % 90
    assert rel_max_error(encode_text(clip, earlier), encode_text(clip, ids)) > 1e-3


def test_pooling_at_the_first_end_token(clip):
    model = with_settings(clip, text={**TEXT, "eos_token_id": 40})
    ids = np.where(token_ids() == 40, 41, token_ids())
    ids[:, 4], ids[:, 11] = 40, 40  # and larger ids elsewhere
    tail = ids.copy()
    tail[:, 5:] = 7
    assert rel_max_error(encode_text(model, tail), encode_text(model, ids)) < 5e-6


def test_pooling_at_the_largest_id_without_an_end_token(clip):
    model = with_settings(clip, text={**TEXT, "eos_token_id": None})
    ids = token_ids(eos=95)  # the largest, at 5 and 9
    as_end = with_settings(clip, text={**TEXT, "eos_token_id": 95})
    np.testing.assert_array_equal(encode_text(model, ids), encode_text(as_end, ids))
    last = ids.copy()
    last[:, 12] = 97
    assert rel_max_error(encode_text(model, last), encode_text(model, ids)) > 1e-2


TEXT = dict(
    vocab_size=99, context_length=16, encoder=dict(width=32, depth=2, num_heads=4, mlp_dim=64)
)


def test_short_texts_are_those_padded(clip):
    short = token_ids(length=10)
    padded = np.pad(short, [(0, 0), (0, 6)], constant_values=98)
    assert rel_max_error(encode_text(clip, padded), encode_text(clip, short)) < 5e-6


@pytest.mark.parametrize("shape", [(2, 17), (16,), (2, 0), (2, 4, 4)])
def test_texts_that_do_not_fit_raise(clip, shape):
    with pytest.raises(ValueError, match=r"\[B, T\] with T in 1..16, got") as error:
        clip.encode_text(np.zeros(shape, np.int32))
    assert str(shape) in str(error.value)


def test_similarity_is_the_cosine():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((3, 5)), rng.standard_normal((4, 5))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    assert rel_max_error(cosines(a, 7 * b), unit(a) @ unit(b).T) < 2e-6
    half = cosines(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
