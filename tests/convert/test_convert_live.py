"""Pickled checkpoints, and tiny CLIPs made and saved by transformers here and now."""

import collections
import json
import pickle
import random
import zipfile

import jax
import numpy as np
import pytest
import tiny_clip
from flax import nnx

import convert
from convert.originals import prepare_libraries
from tests import fuzz

pytestmark = pytest.mark.reference

BOUND = 5e-6  # measured: 2.7e-7 to 5.4e-7


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers(torch):
    prepare_libraries()
    module = pytest.importorskip("transformers")
    if not module.__version__.startswith("5."):
        pytest.skip(f"written for transformers 5, found {module.__version__}")
    return module


def config_of(transformers, activation, eos_token_id):
    tower = dict(hidden_size=32, intermediate_size=80, num_attention_heads=4, hidden_act=activation)
    return transformers.CLIPConfig(
        text_config=tower
        | dict(
            vocab_size=99,
            max_position_embeddings=16,
            num_hidden_layers=2,
            eos_token_id=eos_token_id,
        ),
        vision_config=tower | dict(image_size=32, patch_size=8, num_hidden_layers=3),
        projection_dim=24,
    )


@pytest.fixture(scope="module", params=[("quick_gelu", 2), ("gelu", 50)], ids=str)
def original(request, torch, transformers):
    torch.manual_seed(0)
    config = config_of(transformers, *request.param)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():  # the initial biases are 0 and scales 1: a row swapped would not show
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(params=["safetensors", "sharded", "bin", "sharded bin"])
def saved(request, original, torch, tmp_path):
    if "bin" not in request.param:
        size = {"max_shard_size": "30KB"} if request.param == "sharded" else {}
        original.save_pretrained(tmp_path, **size)
        index = tmp_path / "model.safetensors.index.json"
        assert index.exists() == (request.param == "sharded")
        return tmp_path
    original.config.save_pretrained(tmp_path)
    save_pickles(
        torch, original.state_dict(), tmp_path, shards=1 + 2 * ("sharded" in request.param)
    )
    return tmp_path


def save_pickles(torch, state, folder, shards):
    if shards == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for i in range(shards):
        part = {name: state[name] for name in sorted(state)[i::shards]}
        torch.save(part, folder / f"pytorch_model-{i}.bin")
        weight_map |= dict.fromkeys(part, f"pytorch_model-{i}.bin")
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index)


def embeddings(output):
    """transformers 5 returns an output object where 4 returned the array."""
    return np.asarray(getattr(output, "pooler_output", output).detach())


def relative_error(actual, expected):
    return np.max(np.abs(np.asarray(actual) - expected)) / np.max(np.abs(expected))


def test_converted_models_agree_with_transformers(original, saved, torch):
    model = convert.load_pretrained(saved)
    rng = np.random.default_rng(0)
    token_ids = rng.integers(51, 99, (3, 12))
    token_ids[:, [7, 9]] = 50  # the first is pooled, or the largest id where the config says 2
    with torch.no_grad(), jax.default_matmul_precision("highest"):
        for height, width in ((32, 32), (64, 64), (48, 80), (24, 16)):
            images = rng.normal(size=(2, height, width, 3)).astype(np.float32)
            pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
            expected = original.get_image_features(pixels, interpolate_pos_encoding=True)
            actual = model.encode_image(images)
            assert relative_error(actual, embeddings(expected)) < BOUND, (height, width)
        expected = original.get_text_features(torch.from_numpy(token_ids))
        assert relative_error(model.encode_text(token_ids), embeddings(expected)) < BOUND


def test_a_vision_model_of_transformers_is_refused(transformers, tmp_path, refused):
    config = config_of(transformers, "gelu", 2).vision_config
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path / "source")
    assert "clip_vision_model" in refused(tmp_path / "source")


def test_the_keys_are_those_of_transformers_4(transformers):
    config = transformers.CLIPConfig(**tiny_clip.config())
    assert set(transformers.CLIPModel(config).state_dict()) == set(tiny_clip.tensors())


@pytest.mark.parametrize("left_out", ["text_config", "vision_config", "projection_dim"], ids=str)
def test_defaults_are_those_of_transformers(transformers, tmp_path, left_out):
    values = transformers.CLIPConfig().to_dict()
    del values[left_out]
    full = transformers.CLIPConfig().to_dict()
    parse = convert.clip.parse_config
    assert parse(values) == parse(full)


def test_a_section_dict_wins_as_in_transformers(transformers):
    values = {
        "model_type": "clip",
        "text_config": {"hidden_size": 64, "eos_token_id": 2, "layer_norm_eps": 1e-3},
        "text_config_dict": {"hidden_size": 32},
    }
    parse = convert.clip.parse_config
    theirs = transformers.CLIPConfig(**values).to_dict()
    assert parse(values) == parse(theirs)


@pytest.fixture
def pickled(tmp_path):
    """A checkpoint without weights; gives the path where they belong."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_clip.shallow_config()))
    return folder / "pytorch_model.bin"


def state_dict(torch, dtype=None):
    return {
        name: torch.from_numpy(x).to(dtype or torch.float32)
        for name, x in tiny_clip.shallow_tensors().items()
    }


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_pickles_equal_safetensors(torch, tmp_path, pickled, name, zipped, dtype):
    file = pickled.with_name(name)
    state = state_dict(torch, getattr(torch, dtype))
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    exact = {x: tensor.float().numpy() for x, tensor in state.items()}
    folder = tiny_clip.write(tmp_path / "exact", exact, tiny_clip.shallow_config())
    actual, expected = convert.load_pretrained(file), convert.load_pretrained(folder)
    assert actual.config.dtype == ("bfloat16" if dtype == "bfloat16" else "float32")
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (actual, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), b)


@pytest.mark.parametrize("name", ["model", "state_dict"])
def test_a_state_dict_under_a_name_is_read(torch, pickled, name):
    torch.save({name: state_dict(torch), "epoch": 3, "arch": "vit"}, pickled)
    assert len(jax.tree.leaves(nnx.state(convert.load_pretrained(pickled.parent)))) > 10


class Bomb:
    """Touches a file when it is unpickled by anything that runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_code_is_refused_and_not_run(torch, tmp_path, pickled, refused, how):
    fuse = tmp_path / "fuse"
    state = state_dict(torch) | {"bomb": Bomb(fuse)}
    if how == "torch":
        torch.save(state, pickled)
    else:
        pickled.write_bytes(pickle.dumps(state))
    message = refused(pickled.parent)
    assert "could run code" in message and "nothing in it was run" in message
    assert not fuse.exists()


@pytest.mark.parametrize(
    "make, word",
    [
        (lambda torch: [torch.zeros(1)], "not a state dict"),
        (lambda torch: torch.zeros(1), "not a state dict"),
        (lambda torch: {"state_dict": {"a": torch.zeros(1)}}, "'a' is unknown"),
        (lambda torch: {"model": {"a": torch.zeros(1)}, "ema": {}}, "'a' is unknown"),
        (lambda torch: {"model": {"a": torch.zeros(1)}, "x": torch.zeros(1)}, "--weights NAME"),
        (lambda torch: {"model": {"model": {"a": torch.zeros(1)}}}, "'a' is unknown"),
        (lambda torch: {1: torch.zeros(1)}, "not a state dict"),
        (lambda torch: {"a": torch.eye(2).to_sparse()}, "not a state dict"),
        (lambda torch: {"a": torch.zeros(1, device="meta")}, "not a state dict"),
        (lambda torch: {}, "not a state dict"),
        (lambda torch: collections.OrderedDict(a=torch.zeros(1)), "'a' is unknown"),
        (lambda torch: state_dict(torch, torch.float64), "float64"),
        (lambda torch: state_dict(torch) | {"logit_scale": torch.tensor(1)}, "int64"),
    ],
)
def test_pickles_that_are_not_the_state_dict(torch, pickled, refused, make, word):
    torch.save(make(torch), pickled)
    assert word in refused(pickled.parent)


def test_a_torchscript_archive_is_refused_by_name(pickled, refused):
    with zipfile.ZipFile(pickled, "w") as archive:
        archive.writestr("model/code/__torch__.py", "raise SystemExit")
        archive.writestr("model/constants.pkl", pickle.dumps(()))
    assert "TorchScript" in refused(pickled.parent)


def test_a_compressed_archive_is_refused(torch, pickled, refused):
    """torch would map its compressed bytes as numbers."""
    torch.save(state_dict(torch), pickled)
    with zipfile.ZipFile(pickled) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(pickled, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert "compressed" in refused(pickled.parent)


def test_tensors_larger_than_what_is_stored_are_refused(torch, pickled, refused):
    expanded = torch.zeros(1).expand(2**40)
    torch.save(state_dict(torch) | {"logit_scale": expanded}, pickled)
    assert "more elements than are stored" in refused(pickled.parent)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_pickles(torch, pickled, refused, keep, zipped):
    torch.save(state_dict(torch), pickled, _use_new_zipfile_serialization=zipped)
    content = pickled.read_bytes()
    pickled.write_bytes(content[: int(keep * len(content))])
    assert "is refused" in refused(pickled.parent)


@pytest.mark.parametrize("mutate", [fuzz.flip, fuzz.splice, fuzz.cut])
def test_damaged_pickles_end_cleanly(torch, tmp_path, mutate):
    checkpoint = fuzz.Checkpoint("vit_timm", tmp_path)
    checkpoint.weights.unlink()
    checkpoint.weights = checkpoint.folder / "pytorch_model.bin"
    tensors = {name: torch.from_numpy(x) for name, x in checkpoint.arrays.items()}
    torch.save(tensors, checkpoint.weights)
    content = checkpoint.weights.read_bytes()
    statuses = set()
    for seed in range(40):
        checkpoint.weights.write_bytes(mutate(content, random.Random(seed), 0, len(content)))
        statuses.add(checkpoint.convert(same_tensors=False))
    assert 1 in statuses
