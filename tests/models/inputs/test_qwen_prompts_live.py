"""Tokens, places and patches of Qwen3-VL's prompts, as transformers' processor makes them."""

import numpy as np
import pytest
import tokenizers

from models.inputs.preprocessing import load_preprocessor
from models.inputs.prompts import Video
from models.inputs.qwen_images import patches_of
from models.inputs.qwen_prompts import make_prompts, timed
from models.inputs.video_preprocessing import load_video_preprocessor
from tests.models.inputs.test_prompts_live import LEVEL, image_of
from tests.models.tiny_qwen_vl import IMAGE, VIDEO, config

pytestmark = pytest.mark.reference
MARKS = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
CUT = dict(patch_size=8, merge_size=2)
BUDGET = {"shortest_edge": 1024, "longest_edge": 8192}


@pytest.fixture(scope="module")
def processor(transformers, tmp_path_factory):
    """That of transformers for a tiny model, and ours of images and of videos of its files."""
    start, end, image, video = MARKS
    words = {"[PAD]": 0, "?": 1, start: 2, end: 3, image: IMAGE, video: VIDEO}
    words |= {f"<{time} seconds>": 11 + i for i, time in enumerate(("0.2", "1.0", "1.2", "0.8"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "?"))
    tokenizer.add_special_tokens([*MARKS, *[word for word in words if "seconds" in word]])
    folder = tmp_path_factory.mktemp("processor")
    half = {name: [0.5] * 3 for name in ("image_mean", "image_std")}
    transformers.Qwen3VLProcessor(
        transformers.Qwen2VLImageProcessor(size=BUDGET, **CUT, **half),
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="[PAD]",
            padding_side="left",
            extra_special_tokens=dict(
                zip(
                    ("vision_bos_token", "vision_eos_token", "image_token", "video_token"),
                    MARKS,
                )
            ),
        ),
        transformers.Qwen3VLVideoProcessor(size=BUDGET, **CUT, **half, cap_pixels_per_frame=False),
    ).save_pretrained(folder)
    theirs = transformers.Qwen3VLProcessor.from_pretrained(folder)
    return theirs, load_preprocessor(folder), load_video_preprocessor(folder)


@pytest.mark.parametrize(
    "num_frames, size, rate",
    [(3, (30, 47), 2.0), (4, (60, 20), 2.0), (2, (16, 16), 3.0), (4, (150, 90), 3.0)],
)
def test_a_video_beside_an_image(processor, num_frames, size, rate):
    theirs, preprocessor, of_videos = processor
    frames = [np.asarray(image_of(size, seed)) for seed in range(num_frames)]
    image, (start, end, *marks) = image_of((60, 83)), MARKS
    text = " ".join(f"{start}{mark}{end}" for mark in marks)
    metadata = {"total_num_frames": num_frames, "fps": rate}
    expected = theirs(
        text=[text],
        images=[image],
        videos=[np.stack(frames)],
        video_metadata=[metadata | {"frames_indices": [*range(num_frames)]}],
        do_sample_frames=False,
        return_tensors="np",
    )
    ids = theirs.tokenizer(timed(text, [np.arange(num_frames) / rate]))["input_ids"]
    prompts = make_prompts(
        [ids],
        [[image, Video(tuple(frames))]],
        config=config(),
        preprocessor=preprocessor,
        video_preprocessor=of_videos,
    )
    np.testing.assert_array_equal(prompts.tokens, expected["input_ids"])
    assert len(np.unique(prompts.tokens)) > 5
    for pixels, name in zip(prompts.images, ("pixel_values", "pixel_values_videos"), strict=True):
        difference = patches_of(pixels, **CUT) - expected[name]
        assert np.abs(difference).max() / 2 <= LEVEL + 1e-6
