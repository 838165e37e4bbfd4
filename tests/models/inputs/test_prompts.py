"""Tiles that are cut and tokens that are laid out for them, against counts and pixels by hand."""

import dataclasses

import numpy as np
import pytest
import tokenizers
from PIL import Image

from models import registry
from models.inputs.chat import load_chat
from models.inputs.preprocessor import Preprocessor
from models.inputs.prompts import Video, look, make_prompts
from models.inputs.tiles import END
from tests.models.tiny_llava import IMAGE, KINDS, SIDE, VIDEO, config_of

ONES = (1.0, 1.0, 1.0)
PREPROCESSOR = Preprocessor((SIDE, SIDE), None, (0.5, 0.5, 0.5), ONES, fit="fill")


def plain(height, width, level=255):
    return Image.fromarray(np.full((height, width, 3), level, np.uint8))


def prompts_of(kind, token_ids, images, **settings):
    return make_prompts(
        token_ids, images, config=config_of(kind), preprocessor=PREPROCESSOR, **settings
    )


def test_padding_is_black_and_around_the_image():
    tiles, _ = look(plain(20, 47), config_of("next"), PREPROCESSOR)
    assert tiles.shape == (3, SIDE, SIDE, 3)
    white, black = 0.5, -0.5
    np.testing.assert_array_equal(tiles[0], white)  # the whole image, squeezed
    # In 28 × 56 pixels it is 24 high: 20 · 56 / 47 = 23.8, rounded up; 2 rows on either side.
    both = np.concatenate(tiles[1:], axis=1)
    np.testing.assert_array_equal(both[2:26], white)
    np.testing.assert_array_equal(both[[0, 1, 26, 27]], black)


def test_tiles_are_row_by_row():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[..., 0] = [[0, 50, 100], [150, 200, 250]]
    image = Image.fromarray(pixels.repeat(SIDE, 0).repeat(SIDE, 1))
    tiles, _ = look(image, config_of("next"), PREPROCESSOR)
    np.testing.assert_allclose(
        tiles[1:, :, :, 0].mean((1, 2)) + 0.5, np.arange(0, 251, 50) / 255, atol=1e-6
    )


def test_one_of_several_images_is_put_into_a_square_of_the_mean_colour():
    config = config_of("onevision")
    alone, _ = look(plain(14, 56), config, PREPROCESSOR)
    several, packing = look(plain(14, 56), config, PREPROCESSOR, alone=False)
    assert len(alone) > 1 == len(several) and len(packing.index) == 17
    rows = several[0].mean((1, 2))
    np.testing.assert_allclose(rows[[0, 5, 22, 27]], 127 / 255 - 0.5, atol=1e-6)
    np.testing.assert_allclose(rows[13:15], 0.5, atol=1e-6)
    again, _ = look(plain(14, 56), config_of("next"), PREPROCESSOR, alone=False)
    assert len(again) > 1  # which tiles each


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_token_becomes_as_many_as_are_packed(kind):
    config = config_of(kind)
    images = [[plain(20, 47), plain(60, 30)], [], [plain(100, 30)]]
    ids = [[3, IMAGE, 4, IMAGE], [5, 6, 7], [IMAGE, 8]]
    prompts = prompts_of(kind, ids, images)
    looked = [
        look(image, config, PREPROCESSOR, alone=len(row) == 1) for row in images for image in row
    ]
    first, second, third = (len(packing.index) for _, packing in looked)
    assert len(prompts.tiles) == sum(len(tiles) for tiles, _ in looked)
    expected = [
        [3, *[IMAGE] * first, 4, *[IMAGE] * second],
        [5, 6, 7],
        [*[IMAGE] * third, 8],
    ]
    longest = max(map(len, expected))
    assert prompts.tokens.shape == prompts.key_mask.shape == (3, longest)
    for tokens, mask, row in zip(prompts.tokens, prompts.key_mask, expected, strict=True):
        np.testing.assert_array_equal(tokens[mask], row)
        assert mask[longest - len(row) :].all() and not mask[: longest - len(row)].any()
    # The features that the third image's tokens are of lie behind those of the two others.
    behind = sum(len(tiles) for tiles, _ in looked[:2]) * config.num_features
    index = prompts.index[2, -third - 1 : -1, 0]
    np.testing.assert_array_equal(index[: config.num_features], behind + np.arange(16))
    shifted = np.where(looked[2][1].index == END, END, looked[2][1].index + behind)[:, 0]
    np.testing.assert_array_equal(index, shifted)
    assert not prompts.weight[1].any()


def test_prompts_are_padded_to_the_length_that_is_asked_for():
    prompts = prompts_of("1.5", [[IMAGE, 3]], [[plain(9, 9)]], length=20)
    assert prompts.tokens.shape == (1, 20) and prompts.key_mask.sum() == 17
    with pytest.raises(ValueError, match="17 tokens cannot be padded to 16"):
        prompts_of("1.5", [[IMAGE, 3]], [[plain(9, 9)]], length=16)


def test_frames_of_a_video_are_halved_and_end_once():
    video = Video((plain(20, 47), plain(30, 30, 0), plain(28, 28)))
    config = config_of("onevision")
    tiles, packing = look(video, config, PREPROCESSOR)
    assert tiles.shape == (3, SIDE, SIDE, 3)
    for frame, level in zip(tiles, (0.5, -0.5, 0.5), strict=True):
        np.testing.assert_array_equal(frame, level)
    assert packing.index.shape == (3 * 2 * 2 + 1, 4) and packing.index[-1, 0] == END
    grid = np.arange(3 * 16.0)  # of which each token is the mean of four neighbours
    tokens = np.sum(grid[packing.index] * packing.weight, axis=1)[:-1]
    means = grid.reshape(3, 2, 2, 2, 2).mean((2, 4)).ravel()
    np.testing.assert_allclose(tokens, means)
    prompts = prompts_of("onevision", [[3, VIDEO, IMAGE]], [[video, plain(20, 47)]])
    _, beside = look(plain(20, 47), config, PREPROCESSOR)  # which is the only image
    assert np.sum(prompts.tokens == VIDEO) == 13
    assert np.sum(prompts.tokens == IMAGE) == len(beside.index)


def test_a_model_that_keeps_all_tiles_takes_videos_too():
    """Its images' tokens are features, its videos' between four each."""
    config = registry.override(config_of("next"), {"video_token_id": VIDEO})
    video, image = Video((plain(20, 47), plain(30, 30))), plain(20, 47)
    options = dict(config=config, preprocessor=PREPROCESSOR)
    both = make_prompts([[3, VIDEO, IMAGE], [3, IMAGE]], [[video, image], [image]], **options)
    assert both.index.shape == (*both.tokens.shape, 4) == both.weight.shape
    alone = prompts_of("next", [[3, IMAGE]], [[image]])  # of a model without videos
    real = both.key_mask[1]
    behind = (len(both.tiles) - len(alone.tiles)) * config.num_features
    index = np.where(
        alone.index[0] == END, END, alone.index[0] + behind * alone.weight[0].astype(int)
    )
    np.testing.assert_array_equal(both.index[1, real, :1], index)
    np.testing.assert_array_equal(both.weight[1, real], alone.weight[0] * [1, 0, 0, 0])


def test_a_dialogue_with_images_has_a_token_for_each(tmp_path):
    """From a checkpoint's template and tokenizer, as LLaVA's templates are written."""
    words = {"<image>": IMAGE, "USER:": 1, "ASSISTANT:": 2, "which": 3, "?": 4}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "?"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(
        "USER: {% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}<image>"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %} ASSISTANT:"
    )
    chat = load_chat(tmp_path, vocab_size=31)
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which ?"}]
    asked = [chat.prompt([{"role": "user", "content": content}]) for content in (parts, parts[1:])]
    ids, real = chat.encode(asked)
    images = [[plain(9, 9), plain(20, 47)], [plain(9, 9)]]
    prompts = prompts_of("1.5", [row[mask] for row, mask in zip(ids, real)], images)
    assert np.sum(prompts.tokens == IMAGE, axis=1).tolist() == [32, 16]
    assert prompts.key_mask.sum(axis=1).tolist() == [36, 20]


@pytest.mark.parametrize(
    "ids, images, message",
    [
        ([VIDEO], [plain(9, 9)], "0 image tokens .9., but 1 images"),
        ([IMAGE], [Video((plain(9, 9),))], "1 image tokens .9., but 0 images"),
        ([IMAGE, VIDEO, VIDEO], [plain(9, 9), Video((plain(9, 9),))], "2 video tokens .10., but 1"),
        ([VIDEO, IMAGE], [plain(9, 9), Video((plain(9, 9),))], "in another order than given"),
    ],
)
def test_videos_that_do_not_match_raise(ids, images, message):
    with pytest.raises(ValueError, match=message):
        prompts_of("onevision", [ids], [images])


def test_videos_need_a_model_for_them_and_frames():
    with pytest.raises(ValueError, match="no token for videos: give its frames as images"):
        prompts_of("interleave", [[IMAGE]], [[Video((plain(9, 9),))]])
    with pytest.raises(ValueError, match="a video has no frames"):
        Video(())


@pytest.mark.parametrize(
    "ids, images, message",
    [
        ([[3, IMAGE]], [[]], r"prompt 0 has 1 image tokens \(9\), but 0 images"),
        ([[3, 4]], [[plain(9, 9)]], r"prompt 0 has 0 image tokens \(9\), but 1 images"),
        ([[3], [IMAGE, IMAGE]], [[], [plain(9, 9)]], "prompt 1 has 2 image tokens"),
        ([[3]], [[], []], "1 prompts, but images for 2 of them"),
        ([], [], "there are no prompts"),
        ([[]], [[]], "prompt 0 is empty"),
        ([[3, 31]], [[]], "prompt 0 has the token 31, but the model knows 0 to 30"),
        ([[-1]], [[]], "prompt 0 has the token -1"),
        (
            [[IMAGE, *[3] * 390]],
            [[plain(9, 9)]],
            "prompt 0 has 406 tokens, 16 of them of its images, but .* positions for 400",
        ),
    ],
)
def test_bad_prompts_raise(ids, images, message):
    with pytest.raises(ValueError, match=message):
        prompts_of("1.5", ids, images)


def test_the_preprocessing_of_another_model_is_refused():
    other = dataclasses.replace(PREPROCESSOR, resize=(27, 28))
    with pytest.raises(ValueError, match=r"images of \[27, 28\] pixels, but .* \[28, 28\]"):
        look(plain(9, 9), config_of("1.5"), other)
