"""Tiles and tokens of prompts, as the processors of transformers make them from the same files."""

import numpy as np
import pytest
import tokenizers
from PIL import Image

from models.inputs.preprocessing import load_preprocessor
from models.inputs.prompts import Video, make_prompts
from tests.models.tiny_llava import IMAGE, SIDE, VIDEO, config_of

pytestmark = pytest.mark.reference
LEVEL = 1 / 255
SIZES = ((28, 28), (30, 31), (20, 47), (47, 20), (100, 33), (33, 100), (13, 90), (61, 60), (5, 5))


def tokenizer(transformers):
    words = {"<image>": IMAGE, "<video>": VIDEO, "?": 2, "what": 3, "[PAD]": 0}
    model = tokenizers.models.WordLevel(words, unk_token="?")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )


def processor(transformers, kind, config):
    """The processor of a kind of LLaVA for a tiny model."""
    square = {"height": SIDE, "width": SIDE}
    cropped = {"size": {"shortest_edge": SIDE}, "crop_size": square}
    pinpoints = {"image_grid_pinpoints": [list(x) for x in config.resolutions]}
    name, images, settings = {
        "1.5": ("Llava", ("CLIP", cropped), {}),
        "1.5, padded": ("Llava", ("Llava", cropped | {"do_pad": True}), {}),
        "interleave": ("Llava", ("Siglip", {"size": square}), {}),
        "next": ("LlavaNext", ("LlavaNext", cropped | pinpoints), {}),
        "onevision": (
            "LlavaOnevision",
            ("LlavaOnevision", {"size": square} | pinpoints),
            {
                "num_image_tokens": config.num_features,
                "vision_aspect_ratio": f"anyres_max_{config.most_tiles}",
                "video_processor": transformers.LlavaOnevisionVideoProcessor(size=square),
            },
        ),
    }[kind]
    if name != "LlavaOnevision":
        settings["num_additional_image_tokens"] = int(config.vision.tower == "clip")
    siglip = config.vision.tower == "siglip"
    return getattr(transformers, f"{name}Processor")(
        getattr(transformers, f"{images[0]}ImageProcessor")(**images[1]),
        tokenizer(transformers),
        patch_size=config.vision.patch_size,
        vision_feature_select_strategy="full" if siglip else "default",
        **settings,
    )


def image_of(size, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3)).astype(np.uint8)
    return Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC)


BATCHES = [
    *([[image_of(size)]] for size in SIZES),
    [[image_of((20, 47)), image_of((61, 60), 1)]],
    [[image_of((20, 47), 2)], [image_of((33, 100)), image_of((30, 31), 1)], [image_of((47, 20))]],
]


@pytest.mark.parametrize("kind", ["1.5", "1.5, padded", "interleave", "next", "onevision"])
def test_as_transformers(transformers, tmp_path, kind):
    config = config_of(kind.split(",")[0])
    theirs = processor(transformers, kind, config)
    theirs.save_pretrained(tmp_path)
    preprocessor = load_preprocessor(tmp_path)
    std = np.array(preprocessor.std, np.float32)
    for images in BATCHES:
        texts = ["<image> what " * len(of_prompt) + "?" for of_prompt in images]
        expected = theirs(text=texts, images=images, padding=True, return_tensors="np")
        ids = [theirs.tokenizer(text)["input_ids"] for text in texts]
        prompts = make_prompts(ids, images, config=config, preprocessor=preprocessor)
        mask = expected["attention_mask"].astype(bool)
        np.testing.assert_array_equal(prompts.key_mask, mask)
        np.testing.assert_array_equal(prompts.tokens[mask], expected["input_ids"][mask])
        tiles = np.transpose(prompts.tiles, (0, 3, 1, 2))
        assert_equal_tiles(tiles, expected["pixel_values"], std[:, None, None])


def test_a_video_as_transformers(transformers, tmp_path):
    config = config_of("onevision")
    theirs = processor(transformers, "onevision", config)
    theirs.save_pretrained(tmp_path)
    preprocessor = load_preprocessor(tmp_path)
    frames = [image_of((40, 60), seed) for seed in range(3)]
    text = "what <video> ?"
    expected = theirs(
        text=text, videos=[np.stack([np.asarray(frame) for frame in frames])], return_tensors="np"
    )
    ids, video = theirs.tokenizer(text)["input_ids"], Video(tuple(frames))
    prompts = make_prompts([ids], [[video]], config=config, preprocessor=preprocessor)
    np.testing.assert_array_equal(prompts.tokens, expected["input_ids"])
    tiles = np.transpose(prompts.tiles, (0, 3, 1, 2))
    std = np.array(preprocessor.std, np.float32)[:, None, None]
    assert_equal_tiles(tiles, expected["pixel_values_videos"][0], std)


def assert_equal_tiles(actual, expected, std):
    """Within a level; transformers pads with empty tiles to as many as the image of most has."""
    if expected.ndim == 5:
        expected = [tile for image in expected for tile in image if np.any(tile)]
    assert len(actual) == len(expected)
    assert np.max(np.abs(actual - np.stack(expected)) * std) <= LEVEL + 1e-6
