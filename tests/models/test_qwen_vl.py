"""Qwen3-VL: where features go and at which places, batches, views of the tower, generation."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig
from models import registry
from models.image_tokens import ImageDropping
from models.inputs.prompts import Video
from models.qwen_vision import ImageFeatures
from models.qwen_vl import QwenVLConfig, embed_prompts, generate
from tests.conftest import rel_max_error
from tests.models.inputs.test_qwen_prompts import prompts_of
from tests.models.tiny_qwen_vl import IMAGE, VIDEO, config, tiny_qwen_vl

NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3)).astype(np.uint8)
WIDE, SQUARE = NOISE[:16, :48], NOISE[:32, :32]
FILM = Video((NOISE[16:, :16], NOISE[16:, 16:32], NOISE[16:, 32:]))
IDS = [[3, IMAGE, 4, IMAGE, 5], [6], [3, VIDEO, 7, VIDEO, 8]]

embed = nnx.jit(lambda model, prompts: model.embed(prompts))
logits = nnx.jit(lambda model, prompts: model.logits(prompts))


@pytest.fixture(scope="module")
def prompts():
    return prompts_of(IDS, [[WIDE, SQUARE], [], [FILM]])


def test_features_stand_where_the_image_tokens_are(prompts):
    """Those of the tower in the text, those of its deep-stack merger behind the first block."""
    model, is_image = tiny_qwen_vl(), prompts.is_image
    merged, deepstack = np.random.default_rng(0).standard_normal((2, 11, 24)).astype(np.float32)
    parts = (slice(0, 3), slice(3, 7), slice(7, 11))  # 1 × 3 and 2 × 2 squares, 2 pairs of 2 × 1
    features = [
        ImageFeatures(merged[part].reshape(shape), (deepstack[part].reshape(shape),))
        for part, shape in zip(parts, ((1, 3, 24), (1, 4, 24), (2, 2, 24)))
    ]
    embeddings, others = model.place(prompts, features)
    words = np.asarray(model.decoder.embed(prompts.tokens))
    np.testing.assert_array_equal(embeddings[~is_image], words[~is_image])
    np.testing.assert_array_equal(embeddings[is_image], merged)
    (added,) = others["deepstack"]
    np.testing.assert_array_equal(added[is_image], deepstack)
    assert not added[~is_image].any()


def test_images_that_are_read_one_by_one_are_those_of_one_sequence(prompts):
    expected, actual = embed(tiny_qwen_vl(), prompts), embed_prompts(tiny_qwen_vl(), prompts)
    for one, other in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert rel_max_error(one, other) < 1e-5  # measured: 7e-7


@pytest.mark.slow  # and against transformers in test_qwen_vl_live.py
def test_companions_in_a_batch_change_nothing(prompts):
    """Of the last: padding and the images of others are in front of it."""
    alone = prompts_of(IDS[2:], [[FILM]])
    actual = np.asarray(logits(tiny_qwen_vl(), prompts))[2][prompts.key_mask[2]]
    assert rel_max_error(actual, logits(tiny_qwen_vl(), alone)[0]) < 1e-5  # measured: 6e-7


def test_places_and_deep_features_both_matter(prompts):
    model = tiny_qwen_vl()
    embeddings, others = embed(model, prompts)
    read = jax.jit(lambda decoder, x, others: decoder(x, **others)[0])
    states = lambda **changed: read(model.decoder, embeddings, others | changed)[0, -1]
    expected, counted = states(), np.maximum(prompts.key_mask.cumsum(1) - 1, 0)
    assert rel_max_error(states(deepstack=()), expected) > 1e-3
    rows_alone = prompts.positions.copy()
    rows_alone[..., 2] = rows_alone[..., 0]
    for positions in (np.repeat(counted[..., None], 3, axis=2), rows_alone):
        assert rel_max_error(states(positions=positions), expected) > 1e-4


def test_text_alone_is_read_by_the_language_model_alone():
    embeddings, others = tiny_qwen_vl().embed(prompts_of([[3, 4, 5]], [[]]))
    np.testing.assert_array_equal(embeddings[0], tiny_qwen_vl().decoder.embed([3, 4, 5]))
    np.testing.assert_array_equal(others["positions"][0], np.arange(3)[:, None].repeat(3, 1))
    assert "deepstack" not in others


def test_generation_is_what_the_logits_say():
    """Text goes on behind the longer side of the image, not behind its tokens' number."""
    model, ids = tiny_qwen_vl(), [3, IMAGE, 4]
    prompts = prompts_of([ids, [5, 6]], [[SQUARE], []])
    written = np.asarray(generate(model, prompts, max_new_tokens=3))
    for token in written[0]:
        prompts = prompts_of([ids], [[SQUARE]], length=9)
        assert int(jnp.argmax(logits(model, prompts)[0, -1])) == token
        ids = [*ids, int(token)]


def test_tokens_that_are_left_keep_their_places(prompts):
    model, half = tiny_qwen_vl(), ImageDropping(50, "random")
    embeddings, others = embed_prompts(model, prompts)
    left, fewer = embed_prompts(model, prompts, dropping=half)
    places, key_mask = half.choose(embeddings, prompts.key_mask, prompts.is_image, left.shape[1])
    np.testing.assert_array_equal(fewer["key_mask"], key_mask)
    assert key_mask.sum() == prompts.key_mask.sum() - math.floor(7 / 2) - 2
    rows = np.arange(3)[:, None]
    np.testing.assert_array_equal(fewer["positions"], prompts.positions[rows, places])
    np.testing.assert_array_equal(fewer["deepstack"][0], others["deepstack"][0][rows, places])
    np.testing.assert_array_equal(left, embeddings[rows, places])


@pytest.mark.slow  # in everyday tests of the tower
def test_a_view_runs_fna_in_the_tower(prompts):
    model = tiny_qwen_vl()
    view = models.with_attention(model, FNAConfig("1:2", 4))
    assert jax.tree.leaves(nnx.state(view))[0] is jax.tree.leaves(nnx.state(model))[0]
    (exact, others), (fast, of_view) = embed(model, prompts), embed(view, prompts)
    assert 1e-6 < rel_max_error(fast, exact) < 0.9
    # The merger of the first block, which is exact, has seen the same.
    np.testing.assert_allclose(of_view["deepstack"][0], others["deepstack"][0], atol=1e-5)


def test_a_prompt_without_room_for_the_answer_is_refused():
    prompts = prompts_of([[IMAGE, *[3] * 90]], [[SQUARE]])
    with pytest.raises(ValueError, match="103 tokens, but the model has positions for 1 to 100"):
        generate(tiny_qwen_vl(), prompts, max_new_tokens=10)


def test_the_parts_have_the_dtypes_of_the_whole():
    whole = dataclasses.replace(config(), dtype="bfloat16", param_dtype="bfloat16")
    for part in (whole.vision, whole.decoder):
        assert part.dtype == part.param_dtype == "bfloat16"


def test_config_survives_json():
    values = json.loads(json.dumps(dataclasses.asdict(config())))
    assert registry.config_from_dict(QwenVLConfig, values) == config()


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(image_token_id=31), "image_token_id 31 is none of the 31 tokens"),
        (dict(video_token_id=-1), "video_token_id -1 is none of the 31 tokens"),
        (dict(video_token_id=IMAGE), "image_token_id and video_token_id are both 9"),
        (dict(decoder={"width": 32}), "out_width 24 is not the language model's width 32"),
        (dict(vision={"deepstack": (0, 1)}, decoder={"depth": 1}), "which has 1"),
        (dict(decoder={"rope_sections": ()}), "the decoder needs rope_sections"),
        (dict(decoder={"rope_sections": (1, 1, 2)}), "rope_sections must share the 4 planes"),
    ],
)
def test_bad_configs_raise(overrides, message):
    with pytest.raises(ValueError, match=message):
        registry.override(config(), overrides)
