"""Seeded damage to every file of every layout; `python -m tests.fuzz` does more of it."""

import copy
import json
import random

import numpy as np
import pytest
import safetensors.numpy

from convert.adapters import open_adapter
from convert.errors import ConversionError
from convert.files import open_state_dicts
from tests import fuzz, pickled, training_files, zoo
from tests.conftest import few

WRITERS = pytest.mark.parametrize("write", [pickled.write_archive, pickled.write_legacy])
MUTATIONS = pytest.mark.parametrize("mutate", [fuzz.flip, fuzz.cut, fuzz.splice])


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", few(zoo.CASES, ["clip_hf", "vit_timm_gap", "qwen3_hf"]))
def test_damage_ends_cleanly(tmp_path, case, rounds):
    statuses = {}
    for kind, status in fuzz.campaign(case, tmp_path, rounds):
        statuses.setdefault(kind, set()).add(status)
    always_refused = {f"tensors {mutate.__name__}" for mutate in fuzz.TENSORS}
    always_refused |= {"body cut", "header cut"}
    assert all(statuses[kind] == {1} for kind in always_refused)
    assert statuses["body flip"] == {0}  # another number, no more


@WRITERS
@MUTATIONS
def test_damage_to_what_training_saves_ends_in_one_line_or_in_numbers(tmp_path, write, mutate):
    weights = {"a": np.arange(24, dtype=np.float32), "b": np.ones((2, 3), np.float16)}
    file = write(training_files.timm(weights, weights), tmp_path / "last.ckpt")
    content, refused = file.read_bytes(), 0
    for seed in range(60):
        file.write_bytes(mutate(content, random.Random(seed), 0, len(content)))
        try:
            for tensors in open_state_dicts(file).dicts.values():
                assert all(tensor.read().shape == tensor.shape for tensor in tensors.values())
        except ConversionError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
    assert refused > (5 if mutate is fuzz.flip else 30)


@MUTATIONS
def test_a_damaged_checkpoint_of_training_is_refused_or_converted_right(tmp_path, mutate):
    checkpoint = fuzz.Checkpoint("vit_timm", tmp_path)
    checkpoint.weights.unlink()
    file = checkpoint.folder / "pytorch_model.bin"
    tensors = training_files.prefixed("module.", checkpoint.arrays)
    content = pickled.write_archive(training_files.mae(tensors, None), file).read_bytes()
    assert checkpoint.convert(same_tensors=False) == 0
    start = content.index(b"archive/data.pkl")  # the numbers behind it are any
    statuses = []
    for seed in range(5):
        file.write_bytes(mutate(content, random.Random(seed), start, start + 6000))
        statuses.append(checkpoint.convert(same_tensors=False))
    assert 1 in statuses


def test_strange_values_in_an_adapters_config_end_in_one_line_or_in_factors(tmp_path):
    factors = {"A": np.ones((2, 4), np.float32), "B": np.ones((4, 2), np.float32)}
    names = {f"base_model.model.layer.lora_{x}.weight": array for x, array in factors.items()}
    safetensors.numpy.save_file(names, tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none"}
    config |= {"alpha_pattern": {"layer": 3}, "init_lora_weights": True, "use_dora": False}
    refused = 0
    for seed in range(100):
        values = copy.deepcopy(config)
        fuzz.strange_values(values, random.Random(seed))
        (tmp_path / "adapter_config.json").write_text(json.dumps(values))
        try:
            product = open_adapter(tmp_path).layers["layer"].product()
            assert product.shape == (4, 4) and np.isfinite(product).all()
        except ConversionError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
    assert 20 < refused < 100
