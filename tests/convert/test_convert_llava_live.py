"""LLaVAs against transformers on images of every shape: logits, and what is written in 64 steps."""

import functools
import json

import numpy as np
import pytest
from flax import nnx

import convert
from convert.originals import prepare_libraries
from models.inputs.preprocessor import Preprocessor
from models.inputs.prompts import Video, look, make_prompts
from models.llava import generate
from tests import zoo
from tests.conftest import rel_max_error
from tests.greedy import assert_same_64_tokens

pytestmark = pytest.mark.reference

CASES = ("llava_hf", "llava_interleave_hf", "llava_next_hf", "llava_onevision_hf")
IMAGE, VIDEO = 7, 8  # the tokens
BOUND = 1e-5  # measured: 1.3e-6
PREPROCESSOR = Preprocessor((32, 32), None, (0.5,) * 3, (0.3,) * 3, fit="fill")
BATCHES = {  # sizes of the images of each prompt
    "one tile": [[(32, 32)]],
    "wide": [[(30, 90)]],
    "tall": [[(200, 60)]],
    "odd remainder": [[(47, 61)]],
    "very thin": [[(3, 200)]],
    "two images": [[(30, 90), (47, 61)]],
    "unequal": [[(47, 61)], [(32, 32), (200, 60)], [(30, 90)], []],
}
logits = nnx.jit(lambda model, prompts: model.logits(prompts))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The original of a case with room for 64 tokens behind any of these prompts, and ours."""
    torch = pytest.importorskip("torch")
    prepare_libraries()
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("llava")

    @functools.cache
    def make(case):
        folder = zoo.write(case, root / case)
        values = json.loads((folder / "config.json").read_text())
        values["text_config"]["max_position_embeddings"] = 600
        (folder / "config.json").write_text(json.dumps(values))
        original = getattr(transformers, values["architectures"][0]).from_pretrained(folder)
        return original.to(torch.float32).eval(), convert.load_pretrained(folder)

    return make


def images_and_tokens(sizes):
    rng = np.random.default_rng(0)
    images = [
        [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in of_prompt]
        for of_prompt in sizes
    ]
    return images, [[3, *[IMAGE, 5] * len(of_prompt), 11, 13] for of_prompt in images]


def for_original(prompts, images, config):
    """The same batch as transformers takes it, with empty tiles to as many as an image may have."""
    import torch

    batch = {
        "input_ids": torch.tensor(np.asarray(prompts.tokens), dtype=torch.long),
        "attention_mask": torch.tensor(np.asarray(prompts.key_mask), dtype=torch.long),
    }
    looked = [
        look(image, config, PREPROCESSOR, alone=len(of_prompt) == 1)[0].transpose(0, 3, 1, 2)
        for of_prompt in images
        for image in of_prompt
    ]
    if not config.resolutions:
        return batch | {"pixel_values": torch.tensor(np.concatenate(looked))}
    most = max(map(len, looked))
    padded = [np.pad(x, [(0, most - len(x))] + [(0, 0)] * 3) for x in looked]
    sizes = [image.shape[:2] for of_prompt in images for image in of_prompt]
    batch |= {
        "pixel_values": torch.tensor(np.stack(padded)),
        "image_sizes": torch.tensor(sizes),
    }
    if config.tile_one_only:
        batch["batch_num_images"] = torch.tensor([len(x) for x in images if x])
    return batch


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_originals(pair, case, batch):
    import torch

    original, model = pair(case)
    images, tokens = images_and_tokens(BATCHES[batch])
    prompts = make_prompts(tokens, images, config=model.config, preprocessor=PREPROCESSOR)
    with torch.no_grad():
        expected = original(**for_original(prompts, images, model.config)).logits.numpy()
    actual = np.asarray(logits(model, prompts))
    error = rel_max_error(actual[prompts.key_mask], expected[prompts.key_mask])
    assert error < BOUND


def test_a_video_beside_an_image(pair):
    import torch

    original, model = pair("llava_onevision_hf")
    (frames,), _ = images_and_tokens([[(32, 32), (47, 61), (30, 90)]])
    (images,), _ = images_and_tokens([[(200, 60)]])
    tokens = [[3, VIDEO, 5, IMAGE, 11]]
    prompts = make_prompts(
        tokens, [[Video(tuple(frames)), *images]], config=model.config, preprocessor=PREPROCESSOR
    )
    batch = for_original(prompts, [images], model.config)
    shown = np.transpose(prompts.tiles[: len(frames)], (0, 3, 1, 2))
    with torch.no_grad():
        expected = original(**batch, pixel_values_videos=torch.tensor(shown[None])).logits.numpy()
    assert rel_max_error(logits(model, prompts), expected) < BOUND


@pytest.mark.parametrize("case", CASES)
def test_64_greedy_tokens_are_the_originals(pair, case):
    original, model = pair(case)
    images, tokens = images_and_tokens(BATCHES["unequal"])
    prompts = make_prompts(tokens, images, config=model.config, preprocessor=PREPROCESSOR)
    inputs = for_original(prompts, images, model.config)
    assert_same_64_tokens(original, inputs, functools.partial(generate, model, prompts))
