import importlib
import json

import jax
import numpy as np
import pytest
from flax import nnx

import models
from evals.data.digit_scenes import DIGIT_NAMES, make_scenes
from evals.data.scene_questions import NONE, all_questions, all_words
from evals.running.pretrained import EMBEDDED_MODEL
from models.inputs.chat import load_chat
from models.inputs.preprocessing import load_preprocessor
from models.inputs.prompts import make_prompts
from models.llava import at_size
from tests.models.tiny_llava import tiny_llava
from training import answering
from training.companions import BEGIN_TOKEN, IMAGE_TOKEN, normalise, write_chat_companions
from training.packing import pack


@pytest.fixture
def config():
    """A run of a few steps of a very small decoder."""
    config = importlib.import_module("configs.train_vqa").get_config()
    config.num_steps, config.warmup_steps, config.decay_from, config.save_every = 8, 1, 6, 2
    config.batch_size, config.large_every, config.alignment_steps = 6, 4, 2
    config.kept, config.whole_images_from, config.whole_images_every = 5, 5, 3
    config.model.vision.encoder.depth = 1
    config.model.decoder.update(width=16, depth=1, num_heads=2, num_kv_heads=1)
    config.model.decoder.update(head_dim=8, mlp_dim=16)
    return config


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("companions")
    files = {file.name for file in write_chat_companions(folder)}
    assert files == {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"}
    return load_chat(folder, vocab_size=48)


def test_every_word_of_questions_and_answers_has_a_token(chat):
    unknown = chat.tokenizer.token_to_id("[UNK]")
    for text in all_words():
        (ids,), _ = chat.encode([text], special_tokens=False)
        assert unknown not in ids
    for digits in make_scenes("train", 20, seed=0).digits:
        for _, _, answer in all_questions(digits):
            assert chat.decode(chat.encode([answer])[0]) == [answer]


def test_the_template_puts_the_image_in_front_of_the_question(chat):
    content = [{"type": "image"}, {"type": "text", "text": "is there a two?"}]
    written = chat.prompt([{"role": "user", "content": content}])
    assert written == f"[BOS]{IMAGE_TOKEN}is there a two?"
    tokens = chat.encode([written], special_tokens=False)[0][0]
    assert chat.tokenizer.id_to_token(tokens[1]) == IMAGE_TOKEN and len(tokens) == 7
    assert chat.stop_tokens == (chat.tokenizer.token_to_id("[EOS]"),)


def test_scenes_are_read_as_the_tower_was_trained_to(chat):
    image = make_scenes("train", 1, seed=0).images[0]
    preprocess = load_preprocessor(chat.folder)
    np.testing.assert_allclose(preprocess(image), normalise(image), atol=1e-6)
    assert preprocess.at_size(96)(image).shape == (96, 96, 3)


def test_a_patch_shows_the_digit_at_its_centre(chat):
    scenes = make_scenes("train", 4, seed=0)
    shown = answering._shown(chat, scenes.labels, 16).reshape(4, 16, 16)
    names = np.array([chat.tokenizer.token_to_id(word) for word in (NONE, *DIGIT_NAMES)])
    np.testing.assert_array_equal(shown, names[scenes.labels[:, 2::4, 2::4]])
    larger = answering._shown(chat, scenes.labels, 24).reshape(4, 24, 24)
    for digits, at_two_sizes in zip(scenes.digits, zip(shown, larger, strict=True), strict=True):
        present = {names[0], *names[1 + digits[digits >= 0]]}
        assert [set(grid.flat) for grid in at_two_sizes] == [present, present]


def test_the_longest_questions_of_an_image_fit(chat):
    digits = np.array([[0, 1, 2, 3]])
    longest = answering._asked(chat, np.repeat(digits, 200, axis=0), (0, 0))
    assert longest.tokens.shape == (200, answering._ROOM)
    used = (longest.number >= 0).sum(axis=1)
    assert answering._ROOM - 5 < used.max() <= answering._ROOM


@pytest.mark.parametrize("size", [pytest.param(64, marks=pytest.mark.slow), 96])
def test_a_question_is_read_in_training_as_later(config, chat, size):
    model = answering._new_model(config, chat.tokenizer.token_to_id(IMAGE_TOKEN))
    preprocess = load_preprocessor(chat.folder).at_size(size)
    scene = make_scenes("train", 1, seed=0)
    question, *_ = all_questions(scene.digits[0])
    packed = pack([answering._token_pairs(chat, [question])], 20)
    seen = answering._look(model.vision, preprocess(scene.images[0])[None], None)
    begins = chat.tokenizer.token_to_id(BEGIN_TOKEN)
    hidden = answering._states(model, seen, packed, begins)

    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    written = chat.prompt([{"role": "user", "content": content}])
    tokens = chat.encode([written], special_tokens=False)[0]
    sized = at_size(model, size)
    prompts = make_prompts(
        tokens, [[scene.images[0]]], config=sized.config, preprocessor=preprocess
    )
    later = sized.logits(prompts)[0]
    asked = len(tokens[0]) - 2
    np.testing.assert_allclose(
        model.decoder.logits_of(hidden)[0, :asked], later[-asked:], atol=1e-5
    )


def test_rounded_weights_are_the_nearest_in_bfloat16():
    model = tiny_llava("1.5")
    rounded = answering.rounded(model)
    assert rounded.config.dtype == model.config.dtype == "float32"
    leaves = (jax.tree.leaves(nnx.state(m, nnx.Param)) for m in (model, rounded))
    for leaf, nearest in zip(*leaves, strict=True):
        assert nearest.dtype == jax.numpy.bfloat16
        np.testing.assert_allclose(np.asarray(nearest, np.float32), leaf, rtol=2**-8)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("batch_size", 5, "batch_size must be at least 6"),
        ("alignment_steps", -1, "alignment_weight must be at least 0, got -1 and 0.3"),
        ("kept", 101, "kept must be percent of the patches, got 101"),
        ("large_size", 97, "large_size=97 does not divide by the patch size 4"),
        ("large_every", 0, "large_every must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be above 0"),
    ],
)
def test_settings_that_cannot_be_used(config, field, value, message):
    config[field] = value
    with pytest.raises(ValueError, match=message):
        answering.check_settings(config)


@pytest.mark.slow
def test_a_few_steps_lower_the_loss_and_a_killed_run_goes_on(config, tmp_path, monkeypatch):
    real_step, losses = answering._train_step, []

    def killed_at_step_5(*args):
        if args[-1] == 5 and len(losses) == 5:
            raise KeyboardInterrupt
        state, loss = real_step(*args)
        losses.append(float(loss))
        return state, loss

    monkeypatch.setattr(answering, "_train_step", killed_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        answering.train(config, tmp_path / "killed")
    continued = answering.train(config, tmp_path / "killed")
    assert continued["steps_of_this_run"] == 4
    undisturbed = answering.train(config, tmp_path / "undisturbed")
    assert continued["final_loss"] == undisturbed["final_loss"] == losses[-1]
    assert losses[-1] < losses[config.alignment_steps - config.num_steps]  # of the first answers
    assert json.loads((tmp_path / "killed" / "train.json").read_text()) == continued

    model, tower = models.load(continued["model"]), models.load(EMBEDDED_MODEL).vision
    kernel = lambda tower: tower.encoder.blocks[0].mlp.fc1.kernel[...]
    nearest = kernel(tower).astype(jax.numpy.bfloat16)
    np.testing.assert_array_equal(kernel(model.vision), nearest)  # frozen
