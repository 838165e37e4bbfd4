import importlib
import json

import jax
import numpy as np
import pytest

import models
from evals.data import digit_scenes
from evals.running.workdir import claim_workdir
from models.inputs.preprocessing import load_preprocessor
from models.inputs.tokenizer import load_tokenizer
from training import contrastive
from training.companions import normalise, write_companions


@pytest.fixture
def config():
    """A run of a few steps of a very small model."""
    config = importlib.import_module("configs.train").get_config()
    config.num_steps, config.warmup_steps, config.save_every, config.batch_size = 6, 1, 2, 6
    config.decay_from, config.whole_images_from, config.whole_images_every = 3, 3, 2
    config.model.vision.patch_size = 16
    config.keep_tokens = 10
    for tower in (config.model.vision, config.model.text):
        tower.encoder.update(width=16, depth=1, num_heads=2, mlp_dim=16)
    return config


def test_loss_is_cross_entropy_both_ways_when_captions_differ():
    logits = np.random.default_rng(0).normal(size=(5, 5))
    log_softmax = lambda x: x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    expected = -(np.trace(log_softmax(logits)) + np.trace(log_softmax(logits.T))) / 10
    loss = jax.jit(contrastive.contrastive_loss)(logits, np.arange(5)[:, None])
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_equal_captions_are_no_negatives():
    token_ids = np.array([[1, 2], [1, 2], [3, 4]])
    same = np.all(token_ids[:, None] == token_ids[None], axis=-1)
    logits = np.where(same, 100, 0).astype(np.float32)
    loss = jax.jit(contrastive.contrastive_loss)(logits, token_ids)
    assert float(loss) == pytest.approx((2 * np.log(2) + 0) / 3, rel=1e-5)


@pytest.mark.slow
def test_killed_run_continues_to_the_same_loss_and_weights(config, tmp_path, monkeypatch):
    undisturbed = contrastive.train(config, tmp_path / "undisturbed")
    real_step = contrastive._train_step

    def killed_at_step_5(*args):
        if args[-1] == 5:
            raise KeyboardInterrupt
        return real_step(*args)

    monkeypatch.setattr(contrastive, "_train_step", killed_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        contrastive.train(config, tmp_path / "killed")
    assert not (tmp_path / "killed" / "model").exists()
    monkeypatch.setattr(contrastive, "_train_step", real_step)
    continued = contrastive.train(config, tmp_path / "killed")

    assert continued["steps_of_this_run"] == 2
    assert continued["final_loss"] == undisturbed["final_loss"]
    token_ids = np.arange(22, dtype=np.int32)[None]
    one, other = (models.load(r["model"]).encode_text(token_ids) for r in (undisturbed, continued))
    np.testing.assert_array_equal(one, other)

    again = contrastive.train(config, tmp_path / "killed")  # nothing left to do
    assert again["steps_of_this_run"] == 0 and again["final_loss"] == undisturbed["final_loss"]
    assert json.loads((tmp_path / "killed" / "train.json").read_text()) == again


def test_workdir_of_other_settings_is_refused(config, tmp_path):
    claim_workdir(config, tmp_path)
    config.learning_rate = 1e-4
    with pytest.raises(ValueError, match="other settings"):
        contrastive.train(config, tmp_path)


def test_companions_read_captions_and_scenes_as_training_does(config, tmp_path):
    assert {file.name for file in write_companions(tmp_path)} == {
        "tokenizer.json",
        "preprocessor_config.json",
    }
    scenes = digit_scenes.make_scenes("train", 40, seed=0, num_digits=(4, 4))
    text = config.model.text
    tokenize = load_tokenizer(
        tmp_path, context_length=text.context_length, vocab_size=text.vocab_size
    )
    token_ids = tokenize(scenes.captions)
    assert set(token_ids.flat) == {*range(text.vocab_size)} - {3}  # every word, none unknown
    assert (np.sum(token_ids == config.model.text.eos_token_id, axis=1) == 1).all()
    preprocess = load_preprocessor(tmp_path)
    np.testing.assert_allclose(preprocess(scenes.images[0]), normalise(scenes.images[0]), atol=1e-6)


def test_contrast_finds_the_ink():
    scenes = digit_scenes.make_scenes("train", 30, seed=0, num_digits=(1, 1))
    contrast = np.asarray(contrastive.patch_contrast(normalise(scenes.images), 4))
    inked = scenes.labels.reshape(30, 16, 4, 16, 4).any(axis=(2, 4)).reshape(30, -1)
    top = np.argsort(-contrast, axis=1)[:, :10]
    assert np.take_along_axis(inked, top, axis=1).mean() > 0.95
