"""FNAConfig: parsing, hashing, and an error that names each bad field and its value."""

import dataclasses

import numpy as np
import pytest

from fna_jax import FNAConfig
from fna_jax.config import config_by_block


@pytest.mark.parametrize(
    "layers, parsed",
    [
        ("13:16", (13, 14, 15)),
        ("0:1", (0,)),
        ("3", (3,)),
        ("9,13:16", (9, 13, 14, 15)),
        ("(3, 4)", (3, 4)),
        ("(3,)", (3,)),
        ("[3,9:11]", (3, 9, 10)),
        ((3, 1, 2), (1, 2, 3)),
        ([5], (5,)),
        (range(2, 4), (2, 3)),
        (np.array([1, 4]), (1, 4)),
        ((i for i in (2, 7)), (2, 7)),
    ],
)
def test_layers(layers, parsed):
    config = FNAConfig(layers, 8)
    assert config.layers == parsed
    assert all(type(layer) is int for layer in config.layers)


def test_equal_settings_are_equal_and_hash_alike():
    config = FNAConfig("1:3", 8)
    assert config == FNAConfig((2, 1), 8) and hash(config) == hash(FNAConfig([1, 2], 8))
    changes = [
        dict(layers=(1,)), dict(num_landmarks=9), dict(features="k"), dict(method="random"),
        dict(resample=True), dict(guarantee_prefix=False), dict(inverse_steps=7),
        dict(implementation="xla"), dict(exclude="massive_by_norm"),
        dict(approximation="centroid"),
    ]  # fmt: skip
    of_centroids = [
        dict(partition="kmeans"), dict(windows=4), dict(windows=4, near=1), dict(refine=1),
        dict(residual=False),
    ]  # fmt: skip
    centroid = dataclasses.replace(config, approximation="centroid")
    others = [dataclasses.replace(config, **change) for change in changes]
    others += [dataclasses.replace(centroid, **change) for change in of_centroids]
    assert len(others) == len(dataclasses.fields(FNAConfig))  # a new field belongs here too
    assert len({config, *others}) == len(others) + 1


CENTROID = dict(approximation="centroid")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(partition="kmeans"), "partition='kmeans' needs approximation='centroid'"),
        (dict(windows=4), "windows=4 needs approximation='centroid'"),
        (dict(residual=False), "residual=False needs approximation='centroid'"),
        (CENTROID | dict(inverse_steps=5), "inverse_steps=5 needs approximation='nystrom'"),
        (CENTROID | dict(near=1), "near=1 needs windows"),
        (CENTROID | dict(refine=1, resample=True), "refine=1 needs resample=False"),
        (CENTROID | dict(partition="windows", refine=1), "refine=1 needs partition="),
        (CENTROID | dict(partition="kmeans", method="random"), "method='random' needs partition="),
        (CENTROID | dict(partition="windows", features="k"), "features='k' needs partition="),
    ],
)
def test_what_nothing_would_use_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FNAConfig((1,), 8, **fields)


def test_each_block_has_one_config():
    first, second = FNAConfig("0:2", 8), FNAConfig("2:4", 4, **CENTROID)
    assert config_by_block((first, second)) == {0: first, 1: first, 2: second, 3: second}
    with pytest.raises(ValueError, match=r"blocks \[1\] are in the layers of two"):
        config_by_block((first, FNAConfig((1, 5), 4)))


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FNAConfig((1,), 8).num_landmarks = 9


@pytest.mark.parametrize(
    "layers",
    ["", "3,", "3,3", "()", "(,)", "(3", "3)", "(3]", "((3))", "(3,,)", "(3, 'a')"]
    + ["3:", ":3", "a:b", "3:3", "5:3", "1:2:3", "-1:2", (), (-1,), (1, 1), (1.5,), 3, None],
)
def test_bad_layers(layers):
    with pytest.raises(ValueError, match=r"layers must be block indices") as error:
        FNAConfig(layers, 8)
    assert f"got {layers!r}" in str(error.value)


@pytest.mark.parametrize(
    "field, bad",
    [
        ("num_landmarks", 0),
        ("num_landmarks", 8.0),
        ("num_landmarks", True),
        ("num_landmarks", "8"),
        ("inverse_steps", -1),
        ("inverse_steps", 6.5),
        ("inverse_steps", None),
        ("features", "query"),
        ("features", None),
        ("method", "kmeans"),
        ("method", None),
        ("resample", 1),
        ("resample", "yes"),
        ("guarantee_prefix", None),
        ("implementation", "cudnn"),
        ("implementation", 3),
        ("approximation", "linear"),
        ("partition", "fps"),
        ("windows", 0),
        ("windows", 2.0),
        ("near", 2),
        ("near", True),
        ("refine", -1),
        ("residual", 1),
    ],
)
def test_bad_fields_raise_with_name_and_value(field, bad):
    with pytest.raises(ValueError) as error:
        FNAConfig(**{"layers": (1,), "num_landmarks": 8, field: bad})
    assert field in str(error.value) and repr(bad) in str(error.value)
