"""SigLIP 2 NaFlex against transformers: padded batches stage by stage, and its images."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image, ImageOps

import convert
from convert import naflex_original
from convert.originals import import_torch
from models.attends import attend_among
from models.inputs.naflex_images import PatchBudget, Patches, pack_patches
from models.inputs.preprocessing import load_preprocessor
from models.naflex import embed_patches
from tests import zoo
from tests.conftest import rel_max_error
from tests.models.inputs.test_preprocessing_live import LEVEL, images
from tests.models.test_naflex import patches

pytestmark = pytest.mark.reference

BOUND = 5e-6  # measured: 2e-7 to 7e-7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return zoo.write("siglip2_naflex_hf", tmp_path_factory.mktemp("naflex") / "model")


@pytest.fixture(scope="module")
def original(transformers, folder):
    return transformers.Siglip2Model.from_pretrained(folder, attn_implementation="eager").eval()


@nnx.jit
def stages(model, patches):
    """What our tower computes, by transformers' stages."""
    tower = model.vision
    attends = [attend_among(patches.mask)] * len(tower.encoder.blocks)
    embeddings, *blocks = tower.encoder.hidden_states(embed_patches(tower, patches), attends)
    output = model.encode_patches(patches)
    found = {"embeddings": embeddings, "tokens": output.tokens, "pooled": output.pooled}
    found |= {f"block {i}": block for i, block in enumerate(blocks)}
    return found | {"projected": output.pooled}


def largest_error(model, original, packed):
    """Of any stage, on the patches that are no padding."""
    with import_torch().no_grad():
        expected = naflex_original.run(original, packed)
    found, errors = stages(model, packed), []
    assert found.keys() == expected.keys() and len(found) == 6
    for name, actual in found.items():
        actual, like = np.asarray(actual), expected[name].numpy()
        if actual.ndim == 3:
            actual, like = actual[packed.mask], like[packed.mask]
        errors.append(rel_max_error(actual, like))
    return max(errors)


def test_every_stage_of_a_padded_batch(folder, original):
    model = convert.load_pretrained(folder)
    assert largest_error(model, original, patches()) < BOUND


def test_sizes_are_those_of_transformers(transformers):
    processor = transformers.Siglip2ImageProcessor(patch_size=2, max_num_patches=100)
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 400, (40, 2)).tolist():
        image = Image.new("RGB", (width, height))
        expected = processor(image, return_tensors="np")["spatial_shapes"][0]
        size = PatchBudget(2, 100).size(height, width)
        assert [side // 2 for side in size] == expected.tolist(), (height, width)


def test_images_are_prepared_and_encoded_as_by_transformers(
    transformers, folder, original, tmp_path
):
    settings = dict(patch_size=8, max_num_patches=64)
    processor = transformers.Siglip2ImageProcessor(**settings)
    processor.save_pretrained(tmp_path)
    preprocess, prepared, theirs = load_preprocessor(tmp_path), [], []
    for name, image in images():
        upright = ImageOps.exif_transpose(image)
        inputs = processor(upright.convert("RGB"), return_tensors="np")
        packed = pack_patches([preprocess(image)], patch_size=8, num_patches=64)
        np.testing.assert_array_equal(packed.shapes, inputs["spatial_shapes"], err_msg=name)
        np.testing.assert_array_equal(packed.mask, inputs["pixel_attention_mask"], err_msg=name)
        difference = np.abs(packed.pixels - inputs["pixel_values"]).max()
        assert difference / 2 <= LEVEL + 1e-6, name
        prepared.append(packed)
        theirs.append(inputs)
    inputs = {name: np.concatenate([x[name] for x in theirs]) for name in theirs[0]}
    packed = Patches(
        inputs["pixel_values"],
        inputs["pixel_attention_mask"].astype(bool),
        inputs["spatial_shapes"].astype(np.int32),
    )
    assert largest_error(convert.load_pretrained(folder), original, packed) < BOUND


def test_logits_are_those_of_transformers(folder, original):
    torch, packed = import_torch(), patches()
    token_ids = np.arange(48).reshape(3, 16)
    with torch.no_grad():
        expected = original(
            input_ids=torch.from_numpy(token_ids),
            pixel_values=torch.from_numpy(packed.pixels),
            pixel_attention_mask=torch.from_numpy(packed.mask.astype(np.int32)),
            spatial_shapes=torch.from_numpy(packed.shapes.astype(np.int64)),
        ).logits_per_image
    model = convert.load_pretrained(folder)
    images = model.encode_patches(packed).pooled
    logits = model.logits(images, model.encode_text(token_ids))
    assert rel_max_error(logits, expected.numpy()) < BOUND
