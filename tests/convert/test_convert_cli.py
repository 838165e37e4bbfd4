"""The command line: report, checkpoint and refusals; and where checkpoints come from."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_clip
from flax import nnx

import convert
import models
from convert import sources
from convert.__main__ import main

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments):
    """The command line in a process of its own, off the network."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_what_is_written_loads_as_what_was_converted(source, tmp_path, capsys):
    assert main([str(source), str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in ("family      clip", "mapped      46 tensors", "dtype       float32, from 46 × fl"):
        assert line in out
    expected, actual = convert.load_pretrained(source), models.load(tmp_path / "out")
    assert actual.config == expected.config
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (actual, expected)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert f"parameters  {sum(x.size for x in jax.tree.leaves(nnx.state(actual))):,}" in out


def test_report_of_ignored_float16_and_not_finite_tensors(tmp_path, capsys):
    arrays = {name: x.astype(np.float16) for name, x in tiny_clip.shallow_tensors().items()}
    arrays["logit_scale"] = np.array(np.nan, np.float16)
    folder = tiny_clip.write(
        tmp_path / "source", arrays | tiny_clip.position_ids(), tiny_clip.shallow_config()
    )
    assert main([str(folder), str(tmp_path / "out"), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "dtype       bfloat16, from 46 × float16 (models compute in float32 or bfloat16)" in out
    assert "warning     NaN or infinity in logit_scale" in out
    assert f"ignored     {tiny_clip.VISION_IDS}, {tiny_clip.TEXT_IDS}: a buffer" in out
    assert models.load(tmp_path / "out").config.dtype == "bfloat16"
    with pytest.warns(UserWarning, match="NaN or infinity in logit_scale"):
        convert.load_pretrained(folder)


def test_companions_are_copied(source, tmp_path, capsys):
    (source / "tokenizer.json").write_text("{}")
    assert main([str(source / "model.safetensors"), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "tokenizer.json copied" in out and "preprocessor_config.json" not in out
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "out" / "preprocessor_config.json").exists()


@pytest.mark.parametrize("kind", ["directory", "file", "dangling link"])
def test_an_existing_destination_is_refused_before_reading(tmp_path, capsys, monkeypatch, kind):
    destination = tmp_path / "out"
    makers = {
        "directory": destination.mkdir,
        "file": destination.touch,
        "dangling link": lambda: destination.symlink_to(tmp_path / "nowhere"),
    }
    makers[kind]()
    monkeypatch.setattr("convert.__main__.fetch", lambda *_: pytest.fail("the source was read"))
    assert main(["anything", str(destination)]) == 1
    assert f"{destination} exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_destination_below_a_file(source, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(source), str(tmp_path / "file" / "out")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and len(err.splitlines()) == 1


def test_a_failure_while_writing_leaves_nothing(source, refused, monkeypatch):
    (source / "tokenizer.json").write_text("{}")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("models.checkpoint.shutil.copy", full)
    assert "No space left on device" in refused(source)


def test_what_is_converted_already_is_refused_as_such(source, tmp_path, refused):
    models.save(convert.load_pretrained(source), tmp_path / "out")
    assert "is converted already: models.load reads it" in refused(tmp_path / "out")


ADAPTERS = pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"]
)


@ADAPTERS
def test_an_adapter_beside_the_weights_is_a_warning(source, tmp_path, capsys, name):
    (source / name).write_text("{}")
    assert main([str(source), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert f"warning     {name} beside the weights: an adapter, which was not applied" in out
    assert "merge_and_unload" in out and not (tmp_path / "out" / name).exists()
    with pytest.warns(UserWarning, match=f"{name} beside the weights"):
        convert.load_pretrained(source)


@ADAPTERS
def test_an_adapter_alone_is_refused_as_such(source, refused, name):
    (source / "model.safetensors").rename(source / name)
    for path in (source, source / name):
        message = refused(path)
        assert name in message and "adapter" in message and "merge_and_unload" in message


def test_the_home_directory_is_expanded(source, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert convert.load_pretrained("~/source").config.projection_dim == 24
    assert main(["~/source", "~/out"]) == 0
    assert (tmp_path / "out" / "model.json").is_file()


@pytest.mark.parametrize("address", ["gs://bucket/clip", "s3://bucket/clip"])
def test_an_address_is_refused_in_one_line(source, tmp_path, refused, address):
    assert f"{address} is an address, but only local paths" in refused(address)
    assert main([str(source), address]) == 1


@pytest.mark.parametrize(
    "argv, word", [(["a"], "DESTINATION"), (["a", "b", "--dtype", "int8"], "int8"), ([], "SOURCE")]
)
def test_wrong_arguments(capsys, argv, word):
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and word in err and len(err.splitlines()) == 1


@pytest.mark.slow
def test_a_process_converts(source, tmp_path):
    result = run("-m", "convert", source, tmp_path / "out")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out" / "model.json").is_file()


@pytest.mark.slow
def test_a_process_refuses(tmp_path):
    result = run("-m", "convert", "no/such-model", tmp_path / "out")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no local path 'no/such-model' exists")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_does_not_exist(refused):
    assert refused("./no/such/place").startswith("error: no local path './no/such/place' exists")


def test_dtype_is_checked(source):
    with pytest.raises(convert.ConversionError, match="'int8'"):
        convert.load_pretrained(source, dtype="int8")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with the files named, downloaded into one folder; gives the calls made."""
    calls = []

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append((repo_id, revision))
        folder = tmp_path / "snapshot"
        folder.mkdir(exist_ok=True)
        for file in tmp_path.glob("hub/*"):
            if any(file.match(pattern) for pattern in allow_patterns):
                shutil.copy(file, folder)
        return str(folder)

    (tmp_path / "hub").mkdir()
    monkeypatch.setattr(sources.huggingface_hub, "snapshot_download", snapshot_download)
    return calls


@pytest.mark.parametrize(
    "files, downloaded",
    [
        (["config.json", "model.safetensors"], ["config.json", "model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin", "tf_model.h5"], ["model.safetensors"]),
        (["pytorch_model.bin", "tokenizer.json"], ["pytorch_model.bin", "tokenizer.json"]),
        (
            ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin", "train.py"],
            ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"],
        ),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "a.bin"],
            ["model-00001-of-00002.safetensors", "model.safetensors.index.json"],
        ),
        (["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json"]),
    ],
)
def test_only_what_is_needed_is_downloaded(hub, tmp_path, files, downloaded):
    for name in files:
        (tmp_path / "hub" / name).touch()
    folder = convert.fetch("owner/model", revision="v1")
    assert sorted(path.name for path in folder.iterdir()) == sorted(downloaded)
    assert set(hub) == {("owner/model", "v1")}


def test_a_hub_model_is_converted(hub, tmp_path, source):
    shutil.rmtree(tmp_path / "hub")
    shutil.copytree(source, tmp_path / "hub")
    assert convert.load_pretrained("owner/model").config.projection_dim == 24


def test_a_local_path_comes_first(hub, source, monkeypatch):
    monkeypatch.chdir(source.parent)
    assert convert.fetch("source") == pathlib.Path("source")
    assert hub == []


def test_a_revision_of_a_local_path_is_refused(source, refused):
    assert "'v1'" in refused(source, "--revision", "v1")
