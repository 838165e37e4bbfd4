"""What all jobs begin with: images that open, and refusals before anything is written."""

import importlib
import pkgutil
import re
import types

import pytest

import main
from convert.__main__ import main as convert
from evals.data import photographs
from evals.jobs.opening import first_batch, num_tokens_of, open_images, open_named
from evals.jobs.speed import speed_report
from evals.running.overrides import Override, apply_overrides
from tests import zoo
from tests.evals.conftest import write_image


@pytest.fixture
def images(tmp_path):
    """Paths of five images, of which the first and the fourth do not open."""
    files = [tmp_path / f"{number}.png" for number in range(5)]
    for number, file in enumerate(files):
        write_image(file) if number not in (0, 3) else file.write_bytes(b"none")
    return files


def test_images_that_do_not_open_are_passed_over(images):
    backbone = open_named(importlib.import_module("configs.eval").get_config())
    opened = first_batch(images, backbone.preprocess, 5).real
    assert opened.tolist() == [False, True, True, False, True]
    assert num_tokens_of(backbone, images) == 257
    with pytest.raises(ValueError, match=r"none of the 1 images opens; the first: .*0\.png"):
        num_tokens_of(backbone, images[:1])


@pytest.mark.parametrize(
    "name, field, text",
    [
        ("analyze", "block", "6"),
        ("classify", "fna.layers", "(3,9)"),
        ("eval", "fna.num_landmarks", "300"),
        ("masking", "block", "6"),
        ("segment", "segmentation.layers", "first"),
        ("segment", "segmentation.window", "63"),
        ("speed", "dtype", "float"),
        ("speed", "image_size", "224"),
        ("sweep", "grid.num_landmarks", "300"),
        ("sweep", "masking.max_sinks", "0"),
        ("tune", "budget", "-1"),
        ("tune", "candidates.methods", "random"),
        ("tune", "candidates.num_landmarks", "0"),
        ("tune", "output", "token"),
        ("train", "keep_tokens", "300"),
        ("train", "learning_rate", "-1"),
        ("train", "save_every", "0"),
        ("train", "whole_images_every", "0"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(name, field, text, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    config.update({count: 2 for count in config if re.fullmatch("num_.*_scenes", count)})
    apply_overrides(config, [Override(field, text)])
    with pytest.raises(ValueError, match=field.split(".")[-1]):
        pkgutil.resolve_name(main.TASKS[config.task])(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_photographs_are_those_of_a_half(monkeypatch):
    monkeypatch.setattr(photographs, "_file", lambda name: name)
    for half, names in photographs.HALVES.items():
        config = types.SimpleNamespace(images=f"photographs/{half}", num_images=3)
        assert open_images(config) == list(names[:3])
        config.num_images = None
        assert open_images(config) == list(names)


def test_what_is_no_half_is_a_path():
    config = types.SimpleNamespace(images="photographs/all", num_images=None)
    with pytest.raises(FileNotFoundError, match="photographs/all"):
        open_images(config)


def test_a_language_model_is_refused_before_its_weights_are_read(tmp_path, monkeypatch, capsys):
    """By what runs on images: converted, as it was published, and by its name."""
    source = zoo.write("qwen2_hf", tmp_path / "source")
    assert convert([str(source), str(tmp_path / "converted")]) == 0
    for function in ("models.load", "convert.load_pretrained", "models.create"):
        monkeypatch.setattr(function, None)
    config = importlib.import_module("configs.eval").get_config()
    for model in (source, tmp_path / "converted"):
        config.model = str(model)
        with pytest.raises(ValueError, match="reads text alone and has no vision tower"):
            open_named(config)
    speed = importlib.import_module("configs.speed").get_config()  # which counts it
    speed.model = str(source)
    assert "of the arithmetic of reading 2,928 tokens" in speed_report(speed, tmp_path / "run")
