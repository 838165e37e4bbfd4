"""Numbers of image tokens, as the processors of transformers count them."""

import numpy as np
import pytest
import tokenizers

from models.inputs.tiles import Tiling
from tests.models.inputs.test_tiles import NEXT, ONEVISION, sizes

pytestmark = pytest.mark.reference


def processor(transformers, name, tiling: Tiling, **settings):
    """A processor with a tokenizer of two words."""
    words = tokenizers.models.WordLevel({"<image>": 0, "<video>": 1, "?": 2}, unk_token="?")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(words),
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    images = getattr(transformers, f"{name}ImageProcessor")(
        image_grid_pinpoints=[list(x) for x in tiling.resolutions], **settings.pop("images")
    )
    return getattr(transformers, f"{name}Processor")(
        images, tokenizer, patch_size=tiling.side // tiling.patches, **settings
    )


@pytest.mark.parametrize("name", ["LlavaNext", "LlavaOnevision"])
def test_500_random_sizes(transformers, name):
    if name == "LlavaNext":
        tiling = NEXT
        settings = dict(
            images={"size": {"shortest_edge": 336}, "crop_size": 336},
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    else:
        tiling = ONEVISION
        settings = dict(
            images={"size": {"height": 384, "width": 384}},
            vision_feature_select_strategy="full",
            num_image_tokens=729,
            vision_aspect_ratio="anyres_max_9",
            video_processor=transformers.LlavaOnevisionVideoProcessor(),
        )
    theirs = processor(transformers, name, tiling, **settings)
    asked = sizes(500)
    counted = theirs._get_num_multimodal_tokens(image_sizes=[list(size) for size in asked])
    assert len(set(asked)) > 490
    for size, count in zip(asked, counted["num_image_tokens"], strict=True):
        assert tiling.num_tokens(size) == count, size
    for size in asked[:5]:  # and the text that the processor makes
        image = np.zeros((*size, 3), np.uint8)
        inputs = theirs(text="<image>", images=image, return_tensors="np")
        assert np.sum(inputs["input_ids"] == 0) == tiling.num_tokens(size)
