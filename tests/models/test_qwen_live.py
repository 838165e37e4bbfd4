"""Qwen3-VL's tower and its images against transformers: several sizes, videos, and bfloat16."""

import functools

import numpy as np
import pytest
from flax import nnx
from PIL import ImageOps

import convert
from convert.originals import import_torch
from convert.qwen_original import open_tower, run_tower, tower_tensors
from convert.sources import read_config
from models.inputs.preprocessing import load_preprocessor
from models.inputs.qwen_images import frame_pairs, images_of, patches_of
from tests import zoo
from tests.conftest import random_images, rel_max_error
from tests.models.inputs.test_preprocessing_live import LEVEL, images, smooth

pytestmark = pytest.mark.reference
TOWER = "qwen3_vl_vision"
CUT = dict(patch_size=4, merge_size=2)
BATCHES = (
    random_images(1, batch=2, height=16, width=24),
    frame_pairs(random_images(2, batch=5, height=24, width=16)),  # a video of three pairs
    random_images(3, batch=1, height=8, width=64),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return zoo.write("qwen3_vl_hf", tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def original(transformers, folder):
    """transformers' tower, by the name of its dtype."""
    torch = import_torch()
    tensors = tower_tensors(zoo.tensors("qwen3_vl_hf"))
    state = {name: torch.from_numpy(x) for name, x in tensors.items()}
    values = read_config(folder / "model.safetensors")
    open_one = functools.partial(open_tower, transformers, values, state)
    return lambda dtype: open_one(attn_implementation="eager").to(getattr(torch, dtype))


def stages(tower, batches):
    """What our tower computes of each batch, by transformers' stages."""
    features = tower.encode(batches)
    found = []
    for x, of_batch in zip(batches, features):
        embeddings, *blocks = tower.hidden_states(x)
        found.append(
            {"embeddings": embeddings, "tokens": blocks[-1], "merged": of_batch.merged}
            | {f"block {i}": block for i, block in enumerate(blocks)}
            | {f"deepstack {i}": x for i, x in enumerate(of_batch.deepstack)}
        )
    return found


def run_original(model, batches):
    torch = import_torch()
    with torch.no_grad():
        found = run_tower(model, batches)
    return [{name: x.float().numpy() for name, x in of.items()} for of in found]


def errors(found, expected):
    """The largest relative error of any stage of any batch."""
    return max(
        rel_max_error(np.asarray(of[name], np.float32), x)
        for of, like in zip(found, expected, strict=True)
        for name, x in like.items()
    )


def test_every_stage_of_images_and_a_video_in_one_call(folder, original):
    expected = run_original(original("float32"), BATCHES)
    found = nnx.jit(stages)(convert.load_pretrained(folder, family=TOWER), BATCHES)
    assert found[0].keys() == expected[0].keys() and len(expected[0]) == 7
    assert errors(found, expected) < 1e-5  # 2e-6 measured


def test_bfloat16_is_no_further_from_float32_than_transformers_is(folder, original):
    expected = run_original(original("float32"), BATCHES)
    theirs = errors(run_original(original("bfloat16"), BATCHES), expected)
    tower = convert.load_pretrained(folder, dtype="bfloat16", family=TOWER)
    ours = errors(nnx.jit(stages)(tower, BATCHES), expected)
    assert ours < 1.5 * theirs < 0.2


@pytest.fixture(scope="module")
def processors(transformers, tmp_path_factory):
    """transformers' processor of images and ours, of the file that it saves."""
    folder = tmp_path_factory.mktemp("processor")
    settings = dict(size={"shortest_edge": 1024, "longest_edge": 8192}, **CUT)
    half = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    transformers.Qwen2VLImageProcessor(**settings, **half).save_pretrained(folder)
    return transformers.AutoImageProcessor.from_pretrained(folder), load_preprocessor(folder)


def test_images_are_prepared_as_by_transformers(processors):
    original, preprocess = processors
    for name, image in images():
        expected = original(ImageOps.exif_transpose(image), return_tensors="np")
        out = preprocess(image)
        assert [[1, *(side // 4 for side in out.shape[:2])]] == expected["image_grid_thw"].tolist()
        difference = patches_of(out[None], **CUT) - expected["pixel_values"]
        assert np.abs(difference).max() / 2 <= LEVEL + 1e-6, name


def test_what_transformers_prepared_is_encoded_as_there(folder, original, processors):
    torch = import_torch()
    inputs = processors[0]([smooth((60, 83)), smooth((51, 48))], return_tensors="np")
    grids = inputs["image_grid_thw"]
    assert len({tuple(grid) for grid in grids.tolist()}) == 2
    with torch.no_grad():
        expected = original("float32")(
            torch.from_numpy(inputs["pixel_values"]), grid_thw=torch.from_numpy(grids)
        )
    batches = images_of(inputs["pixel_values"], grids, **CUT)
    found = nnx.jit(lambda tower, batches: tower.encode(batches))(
        convert.load_pretrained(folder, family=TOWER), tuple(batches)
    )
    merged = np.concatenate([features.merged[0] for features in found])
    assert rel_max_error(merged, expected.pooler_output.numpy()) < 1e-5  # measured: 5e-7
    for i, deepstack in enumerate(expected.deepstack_features):
        ours = np.concatenate([features.deepstack[i][0] for features in found])
        assert rel_max_error(ours, deepstack.numpy()) < 1e-5  # measured: 8e-7
