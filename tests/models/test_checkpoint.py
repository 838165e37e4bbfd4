"""Checkpoints: a round trip is bit-equal, and a damaged one gives one clear error."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import models
from fna_jax import FNAConfig
from models.checkpoint import new_directory
from tests.conftest import random_images, tiny_clip

encode_image = nnx.jit(lambda model, images: model.encode_image(images))


@pytest.fixture(scope="module")
def saved(clip, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "clip"
    models.save(clip, path)
    return path


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def edit(path, change):
    file = path / "model.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def assert_equal_weights(model, other):
    states = [nnx.to_flat_state(nnx.state(m, nnx.Param)) for m in (model, other)]
    assert [path for path, _ in states[0]] == [path for path, _ in states[1]]
    for (path, a), (_, b) in zip(*states):
        assert a[...].dtype == b[...].dtype, path
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))


def test_the_home_directory_is_expanded(clip, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert models.load("~/clip").config == clip.config
    monkeypatch.setenv("HOME", str(tmp_path))
    with new_directory("~/new/folder") as folder:
        (folder / "file").touch()
    assert (tmp_path / "new" / "folder" / "file").is_file()


@pytest.mark.parametrize(
    "address", ["gs://bucket/clip", pathlib.Path("s3://bucket/clip"), "https://huggingface.co/x/y"]
)
def test_an_address_is_refused_by_name(clip, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{address} is an address, but only local paths"):
        models.load(address)
    with pytest.raises(ValueError, match=f"^{address} is an address, but only local paths"):
        models.save(clip, address)
    assert list(tmp_path.iterdir()) == []


def test_round_trip_is_bit_equal(clip, saved):
    loaded = models.load(str(saved))
    assert type(loaded) is type(clip) and loaded.config == clip.config
    assert_equal_weights(loaded, clip)
    images = random_images()
    np.testing.assert_array_equal(encode_image(loaded, images), encode_image(clip, images))


def test_round_trip_of_bfloat16_and_other_settings(tmp_path):
    model = tiny_clip(seed=1, dtype="bfloat16", param_dtype="bfloat16", projection_dim=8)
    models.save(model, tmp_path / "new" / "folder")
    loaded = models.load(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert_equal_weights(loaded, model)


def test_the_attention_is_not_saved(clip, tmp_path):
    models.save(models.with_attention(clip, FNAConfig("1:3", 12)), tmp_path / "clip")
    assert models.load(tmp_path / "clip").vision.fna == ()


def test_relative_paths(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.save(clip, "here")
    assert_equal_weights(models.load("here"), clip)


def test_companions_lie_beside_the_weights(clip, tmp_path):
    companion = tmp_path / "tokenizer.json"
    companion.write_text("{}")
    models.save(clip, tmp_path / "clip", companions=[companion])
    assert (tmp_path / "clip" / "tokenizer.json").read_text() == "{}"
    assert (tmp_path / "clip").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_an_existing_path_is_refused(clip, tmp_path, kind):
    path = tmp_path / "taken"
    path.mkdir() if kind == "directory" else path.write_text("mine")
    with pytest.raises(FileExistsError, match="taken exists; choose another"):
        models.save(clip, path)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
    assert kind == "directory" or path.read_text() == "mine"


def test_a_save_that_fails_leaves_nothing_behind(clip, tmp_path):
    with pytest.raises(FileNotFoundError):
        models.save(clip, tmp_path / "clip", companions=[tmp_path / "missing.json"])
    with pytest.raises(TypeError, match="Linear is not one of the models"):
        models.save(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), tmp_path / "linear")
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "cut") as folder:
        (folder / "half").write_text("")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_path_without_a_checkpoint_raises(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no model.json.*python -m convert"):
        models.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"family": "clip"}'])
def test_a_damaged_description_raises(copy, text):
    (copy / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model.json is damaged"):
        models.load(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(family="clop"), "unknown family 'clop'; did you mean 'clip'"),
        (lambda d: d["config"].update(width=3), "CLIPConfig has no field 'width'"),
        (
            lambda d: d["config"]["vision"].update(patchsize=3),
            "no field 'patchsize'; did you mean 'patch_size'",
        ),
        (lambda d: d["config"].pop("text"), "CLIPConfig lacks text"),
        (lambda d: d["config"].update(vision=3), "VisionConfig must be an object, got 3"),
        (lambda d: d.update(config=None), "CLIPConfig must be an object, got None"),
        (
            lambda d: d["config"].update(projection_dim="24"),
            "projection_dim must be .*int.*, got '24'",
        ),
        (
            lambda d: d["config"].update(projection_dim=True),
            "projection_dim must be .*int.*, got True",
        ),
        (
            lambda d: d["config"]["vision"].update(patch_size=0),
            "patch_size must be at least 1, got 0",
        ),
        (
            lambda d: d["config"]["text"]["encoder"].update(width=0),
            "width must be at least 1, got 0",
        ),
    ],
)
def test_a_description_that_does_not_fit_raises(copy, change, message):
    edit(copy, change)
    with pytest.raises(ValueError, match=message):
        models.load(copy)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda config: config.update(projection_dim=25),
            r"projection.kernel is \(32, 24\) there and \(32, 25\)",
        ),
        (
            lambda config: config["vision"]["encoder"].update(depth=4),
            r"blocks.3..* is absent there and \(",
        ),
        (
            lambda config: config["vision"]["encoder"].update(depth=2),
            r"blocks.2..* and absent in the model",
        ),
    ],
    ids=["another shape", "a block more", "a block less"],
)
def test_weights_of_another_config_raise(copy, change, message):
    edit(copy, lambda description: change(description["config"]))
    with pytest.raises(ValueError, match=r"the weights in .* cannot be restored: .*" + message):
        models.load(copy)


@pytest.mark.parametrize("missing", ["", "_METADATA"])
def test_missing_weights_raise(copy, missing):
    path = copy / "weights" / missing
    path.unlink() if missing else shutil.rmtree(path)
    with pytest.raises(ValueError, match=r"the weights in .* cannot be restored: ") as error:
        models.load(copy)
    assert "\n" not in str(error.value)


def test_loading_leaves_the_checkpoint_alone(saved):
    content = lambda: {f: f.read_bytes() for f in saved.rglob("*") if f.is_file()}
    before = content()
    models.load(saved)
    assert content() == before


def test_loaded_weights_lie_on_the_default_device(saved):
    for leaf in jax.tree.leaves(nnx.state(models.load(saved))):
        assert leaf.devices() == {jax.devices()[0]}
