"""LLaVAs of every kind: where features go, batches, views of the tower, generation."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig
from models import registry
from models.inputs.prompts import look
from models.llava import LLaVAConfig, at_size, generate
from tests.conftest import few, rel_max_error
from tests.models.inputs.test_prompts import PREPROCESSOR, plain, prompts_of
from tests.models.tiny_llava import IMAGE, KINDS, config_of, settings_of, tiny_llava

NOISE = np.random.default_rng(0).integers(0, 256, (60, 90, 3)).astype(np.uint8)
WIDE, TALL = NOISE[:20, :47], NOISE[:60, :31]

embed = nnx.jit(lambda model, prompts: model.embed(prompts))
logits = nnx.jit(lambda model, prompts: model.logits(prompts))
features_of = nnx.jit(lambda model, tiles: model.image_features(tiles))


@pytest.mark.parametrize("kind", few(KINDS, ["onevision"]))
def test_features_stand_where_the_image_tokens_are(kind):
    model, config = tiny_llava(kind), config_of(kind)
    prompts = prompts_of(kind, [[3, IMAGE, 4], [5, 6]], [[WIDE], []])
    embeddings = np.asarray(embed(model, prompts))
    words = np.asarray(model.decoder.embed(prompts.tokens))
    is_image = prompts.tokens == IMAGE
    np.testing.assert_array_equal(embeddings[~is_image], words[~is_image])
    tiles, packing = look(WIDE, config, PREPROCESSOR)
    features = np.asarray(features_of(model, tiles)).reshape(-1, 24)
    assert len(features) == len(tiles) * config.num_features
    if config.resolutions:
        features = np.concatenate([features, np.asarray(model.newline)[None]])
    expected = np.einsum("nkw,nk->nw", features[packing.index], packing.weight)
    assert rel_max_error(embeddings[is_image], expected) < 1e-6


@pytest.mark.parametrize("kind", few(KINDS, ["next"]))
def test_companions_in_a_batch_change_nothing(kind):
    """Of the last: padding and the images of others are in front of it."""
    model = tiny_llava(kind)
    ids, images = [[IMAGE, IMAGE, 7], [5, 6], [3, IMAGE, 4]], [[TALL, WIDE], [], [WIDE]]
    together, alone = prompts_of(kind, ids, images), prompts_of(kind, ids[2:], images[2:])
    actual = np.asarray(logits(model, together))[2][together.key_mask[2]]
    assert rel_max_error(actual, logits(model, alone)[0]) < 1e-5  # measured: 5e-7


def test_text_alone_is_read_by_the_language_model_alone():
    model = tiny_llava("next")
    prompts = prompts_of("next", [[3, 4, 5]], [[]])
    np.testing.assert_array_equal(embed(model, prompts), model.decoder.embed(prompts.tokens))


def test_one_compilation_for_images_of_many_sizes():
    """As many tiles and a length are all that a program depends on."""
    traces = []

    @nnx.jit
    def counted(model, prompts):
        traces.append(prompts.tokens.shape)
        return model.embed(prompts)

    for size in ((20, 47), (25, 56), (28, 50), (18, 50)):
        prompts = prompts_of("next", [[3, IMAGE]], [[plain(*size)]], length=80)
        assert len(prompts.tiles) == 3
        jax.eval_shape(counted, tiny_llava("next"), prompts)
    assert len(traces) == 1


def test_generation_is_what_the_logits_say():
    model, ids = tiny_llava("onevision"), [3, IMAGE, 4]
    prompts = prompts_of("onevision", [ids, [5, 6]], [[WIDE], []])
    written = np.asarray(generate(model, prompts, max_new_tokens=3))
    assert written.shape == (2, 3)
    length = prompts.tokens.shape[1] + 2
    for token in written[0]:
        prompts = prompts_of("onevision", [ids], [[WIDE]], length=length)
        assert int(jnp.argmax(logits(model, prompts)[0, -1])) == token
        ids = [*ids, int(token)]


def test_a_prompt_without_room_for_the_answer_is_refused():
    prompts = prompts_of("1.5", [[IMAGE, *[3] * 380]], [[WIDE]])
    with pytest.raises(ValueError, match="406 tokens, but the model has positions for 1 to 400"):
        generate(tiny_llava("1.5"), prompts, max_new_tokens=11)


@pytest.mark.parametrize("kind", few(["onevision", "1.5"]))
def test_a_view_runs_fna_in_the_tower(kind):
    model = tiny_llava(kind)
    tiles, _ = look(plain(28, 28), config_of("1.5"), PREPROCESSOR)
    tiles = tiles + np.random.default_rng(0).standard_normal(tiles.shape).astype(np.float32)
    exact = features_of(model, tiles)
    view = models.with_attention(model, FNAConfig("1:2", 8))
    assert jax.tree.leaves(nnx.state(view))[0] is jax.tree.leaves(nnx.state(model))[0]
    assert 1e-6 < rel_max_error(features_of(view, tiles), exact) < 0.5
    np.testing.assert_array_equal(features_of(models.with_attention(view, None), tiles), exact)
    merged = models.with_fewer_tokens(model, models.TokenMerging(2, "0:2"))
    assert 1e-6 < rel_max_error(features_of(merged, tiles), exact) < 0.9


def test_random_landmarks_of_the_tower_need_a_key():
    model = tiny_llava("1.5")
    view = models.with_attention(model, FNAConfig("1:2", 8, method="random"))
    prompts = prompts_of("1.5", [[3, IMAGE]], [[WIDE]])
    with pytest.raises(ValueError, match="random landmarks need a key"):
        generate(view, prompts, max_new_tokens=1)
    seeded = nnx.jit(lambda model, prompts, rng: model.embed(prompts, rng=rng))
    first, second = (seeded(view, prompts, jax.random.key(seed)) for seed in (0, 1))
    assert rel_max_error(first, second) > 1e-6


@pytest.mark.parametrize("kind", ["1.5", "onevision"])
def test_the_tower_ends_with_its_blocks(kind):
    model = tiny_llava(kind)
    tiles, _ = look(WIDE, config_of(kind), PREPROCESSOR)
    run = nnx.jit(lambda model, tiles: (model(tiles), model.vision.hidden_states(tiles)[-1]))
    output, last = run(model, tiles)
    np.testing.assert_allclose(output.tokens, last, atol=1e-6)
    patches = output.tokens[:, model.vision.num_prefix :]
    np.testing.assert_allclose(output.pooled, patches.mean(1), atol=1e-6)
    assert not any("norm" in name for name in vars(model.vision) if name != "pre_norm")


def test_the_class_token_is_a_feature_where_the_config_says_so():
    name, settings = settings_of("1.5")
    model = models.create(name, rngs=nnx.Rngs(0), **settings, keep_class_token=True)
    assert model.config.num_features == 17
    tiles, _ = look(WIDE, model.config, PREPROCESSOR)
    with_token, without = features_of(model, tiles), features_of(tiny_llava("1.5"), tiles)
    np.testing.assert_allclose(with_token[:, 1:], without, atol=1e-6)


def test_a_saved_llava_is_the_same(tmp_path):
    model = tiny_llava("next")
    models.save(model, tmp_path / "saved")
    again = models.load(tmp_path / "saved")
    assert again.config == model.config
    for actual, expected in zip(*(jax.tree.leaves(nnx.state(m)) for m in (again, model))):
        np.testing.assert_array_equal(actual, expected)


def test_the_language_model_has_the_dtypes_of_the_whole():
    config = dataclasses.replace(config_of("1.5"), dtype="bfloat16", param_dtype="bfloat16")
    assert config.decoder.dtype == config.decoder.param_dtype == "bfloat16"


@pytest.mark.parametrize(
    "kind, overrides, message",
    [
        ("1.5", dict(image_token_id=31), "image_token_id 31 is none of the 31 tokens"),
        ("1.5", dict(most_tiles=3), "most_tiles is for models that cut .*: give resolutions"),
        ("1.5", dict(tile_one_only=True), "tile_one_only is for models that cut"),
        ("1.5", dict(video_token_id=3), "video_token_id is for models that cut"),
        ("onevision", dict(video_token_id=31), "video_token_id 31 is none of the 31 tokens"),
        ("1.5", dict(projector_activation="relu"), "projector_activation must be one of"),
        ("1.5", dict(vision={"tower": "dino"}), "tower must be one of clip, siglip, got 'dino'"),
        ("1.5", dict(vision={"head": True}), "has no head"),
        ("next", dict(keep_class_token=True), "needs CLIP's tower and images that are not cut"),
        ("interleave", dict(keep_class_token=True), "needs CLIP's tower"),
        ("next", dict(resolutions=((30, 28),)), "tiles' side 28"),
        ("next", dict(vision={"image_width": 56}), r"tiles are square, got images of \(28, 56\)"),
        ("next", dict(resolutions=3), "resolutions must be a list, got 3"),
        ("next", dict(resolutions=((28,),)), r"must be a list of 2, got \(28,\)"),
        ("next", dict(resolutions=((28, "a"),)), "resolutions must be int, got 'a'"),
    ],
)
def test_bad_configs_raise(kind, overrides, message):
    with pytest.raises(ValueError, match=message):
        registry.override(config_of(kind), overrides)


@pytest.mark.parametrize("kind", KINDS)
def test_config_survives_json(kind):
    values = json.loads(json.dumps(dataclasses.asdict(config_of(kind))))
    assert registry.config_from_dict(LLaVAConfig, values) == config_of(kind)


@pytest.mark.parametrize("kind", few(["1.5", "interleave"], ["1.5"]))
def test_another_size_is_read_as_the_tower_reads_it(kind):
    model, images = tiny_llava(kind), np.random.default_rng(0).normal(size=(1, 42, 42, 3))
    other = at_size(model, 42)
    read = jax.jit(lambda model, images: model.image_features(images))
    found = read(other, images.astype(np.float32))
    assert found.shape[1] == other.config.num_features == 36
    np.testing.assert_allclose(found, read(model, images.astype(np.float32)), atol=1e-6)
    assert (
        other.decoder.token_embedding.embedding[...] is model.decoder.token_embedding.embedding[...]
    )


def test_sizes_are_for_models_without_tiles():
    with pytest.raises(ValueError, match="cuts images into tiles of one size"):
        at_size(tiny_llava("next"), 42)
    with pytest.raises(ValueError, match="does not divide"):
        at_size(tiny_llava("1.5"), 41)
