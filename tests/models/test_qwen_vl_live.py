"""Qwen3-VL against transformers: logits of images and videos, and what is written in 64 steps."""

import functools
import json

import numpy as np
import pytest
from flax import nnx

import convert
from convert.originals import import_torch
from convert.qwen_original import inputs_of
from models.inputs.preprocessor import Preprocessor
from models.inputs.prompts import Video
from models.inputs.qwen_images import PixelBudget
from models.inputs.qwen_prompts import make_prompts
from models.qwen_vl import generate
from tests import zoo
from tests.conftest import rel_max_error
from tests.greedy import assert_same_64_tokens

pytestmark = pytest.mark.reference

IMAGE, VIDEO, START, END = 5, 6, 7, 8  # the tokens
BOUND = 1e-5  # measured: 1.4e-6
HALF = (0.5,) * 3
PREPROCESSOR = Preprocessor(None, None, HALF, HALF, budget=PixelBudget(8, 256, 2048))
BATCHES = {  # sizes of the images of each prompt, with the number of its frames that of a video
    "one image": [[(24, 40)]],
    "images of several sizes": [[(16, 24), (40, 16), (24, 24)]],
    "unequal": [[(30, 47)], [(16, 16), (60, 24)], [(24, 16)], []],
    "a video": [[(16, 24, 5)]],
    "a video beside images": [[(24, 16), (16, 24, 4)], [(16, 40, 3), (32, 16)]],
}
logits = nnx.jit(lambda model, prompts: model.logits(prompts))


@pytest.fixture(scope="module")
def pair(transformers, tmp_path_factory):
    """transformers' model with room for 64 tokens behind any of these prompts, and ours."""
    folder = zoo.write("qwen3_vl_hf", tmp_path_factory.mktemp("qwen") / "model")
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["max_position_embeddings"] = 400
    (folder / "config.json").write_text(json.dumps(values))
    original = transformers.Qwen3VLForConditionalGeneration.from_pretrained(folder)
    return original.float().eval(), convert.load_pretrained(folder)


def prompts_of(sizes, model):
    """Noise of these sizes, with a mark for each image and each pair of frames."""
    rng = np.random.default_rng(0)
    noise = lambda height, width: rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    images, token_ids = [], []
    for of_prompt in sizes:
        images.append([])
        token_ids.append([3])
        for size in of_prompt:
            frames = [noise(*size[:2]) for _ in range(*size[2:] or (1,))]
            is_video = len(size) > 2
            images[-1].append(Video(tuple(frames)) if is_video else frames[0])
            mark = [30, START, VIDEO, END] if is_video else [START, IMAGE, END]  # behind a time
            token_ids[-1] += mark * (-(-len(frames) // 2)) + [11]
        token_ids[-1] += [13, 17]
    return make_prompts(token_ids, images, config=model.config, preprocessor=PREPROCESSOR)


def for_original(prompts, original):
    """The same batch as transformers takes it."""
    torch = import_torch()
    token_ids = torch.tensor(np.asarray(prompts.tokens), dtype=torch.long)
    images = [x[0] if x.ndim == 4 else x for x in prompts.images]
    inputs = inputs_of(original.config, token_ids, images)
    mask = torch.tensor(np.asarray(prompts.key_mask), dtype=torch.long)
    return {"input_ids": token_ids, "attention_mask": mask} | inputs


@pytest.mark.parametrize("batch", BATCHES)
def test_positions_and_logits_are_the_originals(pair, batch):
    torch = import_torch()
    original, model = pair
    prompts = prompts_of(BATCHES[batch], model)
    inputs = for_original(prompts, original)
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    named = {name: inputs[name] for name in ("input_ids", "mm_token_type_ids", "attention_mask")}
    positions, _ = original.model.get_rope_index(**named, **grids)
    positions = np.transpose(positions.numpy(), (1, 2, 0))
    np.testing.assert_array_equal(prompts.positions[prompts.key_mask], positions[prompts.key_mask])
    with torch.no_grad():
        expected = original(**inputs).logits.numpy()
    actual = np.asarray(logits(model, prompts))
    error = rel_max_error(actual[prompts.key_mask], expected[prompts.key_mask])
    assert error < BOUND


@pytest.mark.parametrize("batch", ["unequal", "a video beside images"])
def test_64_greedy_tokens_are_the_originals(pair, batch):
    original, model = pair
    prompts = prompts_of(BATCHES[batch], model)
    inputs = for_original(prompts, original)
    assert_same_64_tokens(original, inputs, functools.partial(generate, model, prompts))
