"""Models of the hub in one line: converted once into the cache folder, then read offline."""

import json
import pathlib
import shutil

import pytest
import tiny_clip

import convert
import models
from convert import sources
from tests import zoo

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_ID = "owner/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub with one model, whose snapshots lie as in the library's cache; gives the calls made."""
    calls = []
    hub = tiny_clip.write(tmp_path / "hub", tiny_clip.shallow_tensors(), tiny_clip.shallow_config())
    (hub / "tokenizer.json").write_text("{}")
    snapshot = tmp_path / "models--owner--model" / "snapshots" / COMMIT

    def snapshot_download(repo_id, *, revision, allow_patterns):
        calls.append((repo_id, revision))
        if not hub.is_dir():
            raise OSError("no network")
        shutil.copytree(hub, snapshot, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr(sources.huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return calls


def cached(tmp_path):
    """What lies in the cache folder."""
    return sorted(path.name for path in (tmp_path / "cache" / "fna-jax" / "hub").glob("*"))


def assert_equal(model, other):
    assert model.config == other.config
    zoo.assert_same_leaves(model, other)


def test_a_model_is_converted_once_and_then_read_offline(hub, tmp_path, capsys):
    first = convert.load(HUB_ID)
    assert hub == [(HUB_ID, None)] and "is converted, once, to" in capsys.readouterr().err
    expected = convert.load_pretrained(tmp_path / "hub")
    shutil.rmtree(tmp_path / "hub")  # the network is gone, and the library's cache
    shutil.rmtree(tmp_path / "models--owner--model")
    again = convert.load(f"hf:{HUB_ID}")
    assert hub == [(HUB_ID, None)] and capsys.readouterr().err == ""
    assert_equal(first, expected)
    assert_equal(again, expected)
    assert cached(tmp_path) == ["owner%2Fmodel@main@as-is"]


def test_the_commit_is_recorded_and_the_companions_are_there(hub, tmp_path):
    folder = convert.converted(HUB_ID, revision="v1")
    assert json.loads((folder / "source.json").read_text()) == {
        "source": HUB_ID,
        "revision": "v1",
        "commit": COMMIT,
    }
    assert (folder / "tokenizer.json").is_file() and hub == [(HUB_ID, "v1")]


def test_each_revision_and_dtype_is_a_conversion_of_its_own(hub, tmp_path):
    dtypes = {convert.load(HUB_ID, dtype=dtype).config.dtype for dtype in ("float32", "bfloat16")}
    assert dtypes == {"float32", "bfloat16"}
    convert.converted(HUB_ID, revision="refs/pr/1")
    assert len(cached(tmp_path)) == len(hub) == 3


def test_a_failure_leaves_nothing_and_the_next_try_converts(hub, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("models.checkpoint.shutil.copy", full)
        with pytest.raises(OSError, match="No space left"):
            convert.load(HUB_ID)
    assert cached(tmp_path) == []
    assert convert.load(HUB_ID).config.projection_dim == 24


def test_two_processes_at_once_have_one_conversion(hub, tmp_path, monkeypatch):
    save = models.save

    def save_after_the_other(model, path, **keywords):
        save(model, path, **keywords)  # the other process ends first
        save(model, path, **keywords)

    monkeypatch.setattr("convert.writing.models.save", save_after_the_other)
    assert convert.load(HUB_ID).config.projection_dim == 24
    assert len(cached(tmp_path)) == 1


def test_without_a_network_the_first_time_is_one_line(hub, tmp_path):
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(convert.ConversionError, match=r"cannot be downloaded .* no network"):
        convert.load(HUB_ID)
    assert cached(tmp_path) == []


def test_local_files_and_converted_directories_are_read_where_they_lie(hub, tmp_path):
    expected = convert.load_pretrained(tmp_path / "hub")
    assert_equal(convert.load(tmp_path / "hub"), expected)
    models.save(expected, tmp_path / "saved")
    assert_equal(convert.load(tmp_path / "saved"), expected)
    with pytest.raises(convert.ConversionError, match="converted already: drop"):
        convert.load(tmp_path / "saved", dtype="bfloat16")
    assert hub == [] and cached(tmp_path) == []


def test_a_hub_id_with_its_sign_comes_before_a_local_path(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("owner", "model").mkdir(parents=True)
    with pytest.raises(convert.ConversionError, match="holds none of"):
        convert.load(HUB_ID)
    assert convert.load(f"hf:{HUB_ID}").config.projection_dim == 24
