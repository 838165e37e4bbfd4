"""SigLIP 2 NaFlex: padded patches of images of any size, in exact and approximate attention."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

import convert
import models
from convert.errors import ConversionError
from convert.siglip import parse_config
from fna_jax import FNAConfig, Masking
from models.inputs.naflex_images import PatchBudget, Patches, pack_patches
from models.naflex import position_weights
from models.siglip import VARIANTS
from tests import zoo
from tests.conftest import few, random_images, rel_max_error

SHAPES = ((3, 5), (6, 2), (4, 4))  # patches down and across
LENGTH = 20
CLOSE = 5e-6  # 1.3e-6 measured
ARMS = {
    "fna": FNAConfig("0:2", 14),  # more than the second image has patches
    "exact": None,
    "centroid": FNAConfig("0:2", 6, approximation="centroid"),
    "fna resampled": FNAConfig("0:2", 6, features="input", resample=True),
    "centroid refined": FNAConfig("0:2", 6, approximation="centroid", refine=1),
}


@pytest.fixture(scope="module")
def naflex(tmp_path_factory):
    """A NaFlex of patches of 8 pixels, positions for 4 × 4. Tests must not change it."""
    folder = zoo.write("siglip2_naflex_hf", tmp_path_factory.mktemp("zoo") / "model")
    return convert.load_pretrained(folder)


def images():
    return [
        random_images(i, batch=1, height=8 * down, width=8 * across)[0]
        for i, (down, across) in enumerate(SHAPES)
    ]


def patches(num_patches=LENGTH, seed=None):
    """Of the images; with a seed, padding is filled with large numbers."""
    packed = pack_patches(images(), patch_size=8, num_patches=num_patches)
    if seed is None:
        return packed
    noise = 100 * np.random.default_rng(seed).standard_normal(packed.pixels.shape)
    pixels = np.where(packed.mask[..., None], packed.pixels, noise.astype(np.float32))
    return dataclasses.replace(packed, pixels=pixels)


encode = nnx.jit(lambda model, patches: model.encode_patches(patches))


@pytest.mark.parametrize("arm", few(ARMS))
def test_padding_changes_nothing(naflex, arm):
    view = models.with_attention(naflex, ARMS[arm]) if ARMS[arm] else naflex
    expected = encode(view, patches())
    for padded in (patches(seed=1), patches(LENGTH + 9, seed=2)):
        actual = encode(view, padded)
        assert rel_max_error(actual.pooled, expected.pooled) < CLOSE
        assert np.isfinite(actual.tokens).all()
        for i, real in enumerate(patches().mask.sum(axis=1)):
            assert rel_max_error(actual.tokens[i, :real], expected.tokens[i, :real]) < CLOSE


def test_a_padded_image_is_that_image_alone(naflex):
    padded = encode(naflex, patches(seed=0))
    one = nnx.jit(lambda model, images: model(images))
    for i, image in enumerate(images()[:1]):
        alone = one(naflex, image[None])
        assert rel_max_error(padded.pooled[i : i + 1], alone.pooled) < CLOSE
        real = alone.tokens.shape[1]
        assert rel_max_error(padded.tokens[i : i + 1, :real], alone.tokens) < CLOSE


def test_padding_is_no_landmark_even_where_landmarks_are_more_than_patches(naflex):
    view = models.with_attention(naflex, ARMS["fna"])
    landmarks = encode(view, patches(seed=1)).landmarks
    indices, valid = np.asarray(landmarks.indices), np.asarray(landmarks.valid)
    counts = [15, 12, 16]
    assert valid.sum(axis=1).tolist() == [14, 12, 14]
    for row, real, count in zip(indices, valid, counts):
        assert len(set(row[real])) == real.sum() and row[real].max() < count


def test_positions_are_resized_to_each_images_own_grid():
    learned, shapes = (4, 6), np.array([(3, 5), (1, 20), (9, 2), (4, 6)])
    positions = np.random.default_rng(0).standard_normal((*learned, 3)).astype(np.float32)

    @jax.jit
    def of_all(positions):
        weights = position_weights(shapes, 24, learned)
        alone = [jax.image.resize(positions, (*shape, 3), "linear") for shape in shapes]
        return weights, weights @ positions.reshape(-1, 3), alone

    weights, resized, alone = of_all(positions)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    for i, expected in enumerate(alone):
        expected = np.asarray(expected).reshape(-1, 3)
        assert rel_max_error(resized[i, : len(expected)], expected) < 1e-6
    np.testing.assert_allclose(resized[3], positions.reshape(-1, 3), rtol=1e-6)


@pytest.mark.parametrize("most", [1, 7, 256, 1024])
def test_sizes_keep_the_aspect_and_the_budget(most):
    rng = np.random.default_rng(most)
    for height, width in rng.integers(1, 3000, (50, 2)).tolist():
        size = PatchBudget(16, most).size(height, width)
        down, across = (side // 16 for side in size)
        assert (16 * down, 16 * across) == size and min(down, across) >= 1
        assert down * across <= most
        # No more fit in both: each side is its share of one scale, rounded up.
        low = max((down - 1) / height, (across - 1) / width)
        assert low <= min(down / height, across / width) * (1 + 1e-9)


def test_an_image_of_the_budget_keeps_its_size():
    assert PatchBudget(16, 256).size(256, 256) == (256, 256)
    assert PatchBudget(16, 256).size(30, 70) == (160, 384)  # as transformers


def test_patches_are_packed_row_by_row():
    packed = patches()
    assert packed.shapes.tolist() == [list(shape) for shape in SHAPES]
    assert packed.mask.sum(axis=1).tolist() == [15, 12, 16]
    cut = images()[1][8:16, 8:16]  # the second row and column
    np.testing.assert_array_equal(packed.pixels[1, 3], cut.reshape(-1))
    assert not packed.pixels[~packed.mask].any()


@pytest.mark.parametrize("shape", [(8, 9), (0, 8), (8, 8 * 21), (7, 8)])
def test_images_that_do_not_fit_name_the_remedy(shape):
    with pytest.raises(ValueError, match=r"resize it to PatchBudget\(8, 20\)\.size"):
        pack_patches([np.zeros((*shape, 3))], patch_size=8, num_patches=20)
    with pytest.raises(ValueError, match="at least one"):
        pack_patches([], patch_size=8, num_patches=20)


@pytest.mark.parametrize(
    "fna, words",
    [
        (FNAConfig("0:1", 4, approximation="centroid", windows=4), "windows are of one grid"),
        (FNAConfig("0:1", 4, approximation="centroid", partition="windows"), "windows are of one"),
        (FNAConfig("0:1", 4, approximation="centroid", partition="kmeans"), "windows are of one"),
        (FNAConfig("0:1", 4, exclude="massive_by_norm"), "does not know of padding"),
    ],
)
def test_what_needs_one_grid_is_refused(naflex, fna, words):
    with pytest.raises(ValueError, match=words):
        models.with_attention(naflex, fna).encode_patches(patches())


def test_other_views_towers_and_shapes_are_refused(naflex):
    masked = models.with_interventions(naflex, {0: Masking(mode="mask")})
    with pytest.raises(ValueError, match="this view masks tokens"):
        masked.encode_patches(patches())
    with pytest.raises(ValueError, match=r"\(3, 20, 192\).* got \[\(3, 20, 192\), \(3, 19\)"):
        packed = patches()
        naflex.encode_patches(Patches(packed.pixels, packed.mask[:, 1:], packed.shapes))
    small = dict(encoder=dict(width=32, depth=1, num_heads=2, mlp_dim=32))
    fixed = nnx.eval_shape(
        lambda: models.create(
            "siglip-vit-b-16-224", rngs=nnx.Rngs(0), vision=small, text=dict(small, vocab_size=9)
        )
    )
    with pytest.raises(ValueError, match="'bicubic': call it on images"):
        fixed.encode_patches(patches())


def test_an_empty_config_is_the_base_model():
    vocabulary = dict(text_config=dict(vocab_size=256000))
    parsed = parse_config(dict(model_type="siglip2") | vocabulary)
    assert parsed.config == VARIANTS["siglip2-vit-b-16-naflex"]
    with pytest.raises(ConversionError, match="num_patches must be of a square, got 7"):
        parse_config(dict(model_type="siglip2", vision_config=dict(num_patches=7)))
