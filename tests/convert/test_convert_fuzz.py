"""Seeded damage to every file of every layout; `python -m tests.fuzz` does more of it."""

import random

import numpy as np
import pytest

from convert.errors import ConversionError
from convert.files import open_state_dicts
from tests import fuzz, pickled, training_files, zoo

WRITERS = pytest.mark.parametrize("write", [pickled.write_archive, pickled.write_legacy])
MUTATIONS = pytest.mark.parametrize("mutate", [fuzz.flip, fuzz.cut, fuzz.splice])


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", zoo.CASES)
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
