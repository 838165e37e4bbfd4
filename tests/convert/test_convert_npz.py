"""Google's `.npz`: AugReg's ViT and big_vision's SigLIP, from the file alone."""

import random

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import convert
from convert.__main__ import main
from convert.loading import convert_checkpoint
from models.configs import image_shape
from tests import fuzz, npz, zoo
from tests.conftest import few

CASES = pytest.mark.parametrize("case", npz.CASES)
MEASURED = 5e-6  # the largest: 1.1e-6
GRID = dict(patch_grid=(4, 4))  # as would be guessed


@pytest.fixture
def written(tmp_path):
    """Writes arrays; gives their file."""
    return lambda arrays: npz.write(arrays, tmp_path / "weights.npz")


@pytest.mark.parametrize("case", few(npz.CASES))
def test_outputs_are_the_originals(case, written):
    model, report = convert_checkpoint(written(npz.tensors(case)))
    zoo.assert_computes(model, npz.expected(case), MEASURED)
    assert not report.ignored and not report.not_finite
    assert [(guess.name, guess.value) for guess in report.guesses] == [("patch_grid", (4, 4))]


def marked(arrays):
    """The arrays, each filled with a number of its own."""
    found = {}
    for number, name in enumerate(sorted(arrays)):
        found[name] = np.full(arrays[name].shape, number, np.float32)
    return found


@CASES
def test_every_array_fills_leaves_and_no_leaf_is_left(case, written):
    arrays = marked(npz.tensors(case))
    model, report = convert_checkpoint(written(arrays))
    numbers = [np.unique(leaf).tolist() for leaf in jax.tree.leaves(nnx.state(model))]
    assert sorted(numbers) == [[i] for i in range(len(arrays))]
    assert report.num_mapped == len(arrays)


@pytest.mark.parametrize("towers", few(["img txt", "img", "txt"]))
def test_stacked_blocks_are_the_numbered_ones(towers, written, tmp_path):
    arrays = npz.tensors("siglip")
    expected = convert.load_pretrained(written(arrays), **GRID)
    for tower in towers.split():
        arrays = npz.stacked(arrays, tower)
    model, report = convert_checkpoint(npz.write(arrays, tmp_path / "stacked.npz"))
    zoo.assert_same_leaves(model, expected)
    assert model.config == expected.config and report.num_mapped == len(arrays)


def test_the_file_alone_is_enough(written, tmp_path, capsys):
    assert main([str(written(npz.tensors("augreg"))), str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "family      vit (vision_transformer)\n" in out
    assert "guessed     patch grid 4,4: guessed from 16 positions, as a square" in out
    arrays = npz.tensors("siglip") | {"opt/0/mu/params/t": np.zeros(1, np.float32)}
    assert main([str(written(arrays)), str(tmp_path / "siglip")]) == 0
    out = capsys.readouterr().out
    assert "weights     'params', beside 'opt'\n" in out
    assert "family      siglip (big_vision)\n" in out


def test_images_need_not_have_been_square(written, refused):
    arrays = npz.tensors("augreg")
    name = "Transformer/posembed_input/pos_embedding"
    file = written(arrays | {name: arrays[name][:, :13]})
    assert "3 by 3 patches does not have 12 positions; --patch-grid H,W" in refused(file)
    config = convert.load_pretrained(file, patch_grid=(2, 6)).config
    assert image_shape(config) == (16, 48) and config.encoder.num_heads == 4


def test_without_a_class_token_the_patches_are_averaged(written):
    arrays = npz.tensors("augreg")
    del arrays["cls"]
    name = "Transformer/posembed_input/pos_embedding"
    config = convert.load_pretrained(written(arrays | {name: arrays[name][:, 1:]}), **GRID).config
    assert (config.class_token, config.pool, config.norm) == (False, "avg", "tokens")


def test_the_head_of_pretraining_is_named_and_left(written):
    pre_logits = {"pre_logits/kernel": np.ones((32, 32)), "pre_logits/bias": np.ones(32)}
    model, report = convert_checkpoint(written(npz.tensors("augreg") | pre_logits))
    assert model.config.num_classes == 0
    assert report.ignored.keys() == {*pre_logits, "head/kernel", "head/bias"}
    assert "a layer and tanh" in report.ignored["head/bias"]


def test_bfloat16_is_read_as_numpy_stores_it(written):
    arrays = npz.tensors("augreg")
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}
    model, report = convert_checkpoint(written(half))
    assert report.file_dtypes == {"bfloat16": len(arrays)} and report.dtype == "bfloat16"
    kernel = model.head.kernel[...]
    np.testing.assert_array_equal(np.asarray(kernel), half["head/kernel"])


def changed(name, change):
    return lambda arrays: arrays | {name: change(arrays[name])}


BLOCK = "params/img/Transformer/encoderblock"


@pytest.mark.parametrize(
    "case, change, words",
    [
        ("augreg", lambda x: x | {"conv_root/kernel": np.ones((7, 7, 3, 64))}, "a hybrid"),
        ("augreg", changed("embedding/kernel", lambda x: x[:4]), "of square patches of three"),
        ("augreg", changed("embedding/kernel", lambda x: x[:, :, :1]), "of square patches"),
        ("augreg", changed("embedding/kernel", lambda x: x[0]), "embedding/kernel is missing, or"),
        ("augreg", changed("cls", lambda x: x[..., :8]), "cls is [1, 1, 8], expected [1, 1, 32]"),
        ("augreg", changed("cls", lambda x: x.astype(np.float64)), "cls is 'float64'"),
        ("augreg", lambda x: x | {"more": np.ones(3)}, "'more' is unknown"),
        ("siglip", changed("params/img/embedding/kernel", lambda x: x.reshape(-1, 40)), "NaFlex"),
        ("siglip", changed("params/txt/head/kernel", lambda x: x[:, :24]), "expected [24, 40]"),
        ("siglip", lambda x: {k: v for k, v in x.items() if k != "params/b"}, "none fits"),
        (
            "siglip",
            lambda x: {k: v for k, v in x.items() if "img/Transformer/" not in k},
            "img/Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel is missing",
        ),
        (
            "siglip",
            lambda x: {k: v for k, v in x.items() if "block_0/MlpBlock_0/Dense_1/bias" not in k},
            "Dense_1/bias is missing",
        ),
        (
            "siglip",
            lambda x: changed(
                f"{BLOCK}/MlpBlock_0/Dense_0/bias", lambda bias: bias[:1]
            )(npz.stacked(x, "img")),
            "Dense_0/bias is [1, 80], expected [2, 80]",
        ),
        (
            "siglip",
            lambda x: changed(
                f"{BLOCK}/MultiHeadDotProductAttention_0/query/kernel",
                lambda kernel: np.repeat(kernel[:, :1], 999, axis=0),
            )(npz.stacked(x, "img")),
            "num_hidden_layers must be an integer in 1..128",
        ),
    ],
)  # fmt: skip
def test_files_of_other_models_are_refused(written, refused, case, change, words):
    assert words in refused(written(change(npz.tensors(case))))


@CASES
@pytest.mark.parametrize("mutate", [fuzz.drop, fuzz.add, fuzz.transpose, fuzz.grow, fuzz.swap])
def test_damaged_arrays_end_in_one_line(written, refused, case, mutate):
    arrays = npz.tensors(case)
    mutate(arrays, sorted(arrays), random.Random(0))
    refused(written(arrays))


@pytest.mark.parametrize("mutate", [fuzz.flip, fuzz.cut, fuzz.splice])
def test_damaged_files_end_in_one_line_or_in_a_model(written, tmp_path, mutate, capsys):
    file = written(npz.tensors("augreg"))
    content, statuses = file.read_bytes(), []
    for seed in range(5):
        file.write_bytes(mutate(content, random.Random(seed), 0, len(content)))
        statuses.append(main([str(file), str(tmp_path / f"out {seed}")]))
        assert len(capsys.readouterr().err.splitlines()) == statuses[-1]
    assert 1 in statuses
