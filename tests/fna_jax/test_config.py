"""FNAConfig: parsing, hashing, and an error that names each bad field and its value."""

import dataclasses

import numpy as np
import pytest

from fna_jax import FNAConfig


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
    others = [
        dataclasses.replace(config, **change)
        for change in (
            dict(layers=(1,)), dict(num_landmarks=9), dict(features="k"), dict(method="random"),
            dict(resample=True), dict(guarantee_prefix=False), dict(inverse_steps=7),
            dict(implementation="xla"), dict(exclude="massive_by_norm"),
        )
    ]  # fmt: skip
    assert len(others) == len(dataclasses.fields(FNAConfig))  # a new field belongs here too
    assert len({config, *others}) == len(others) + 1


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
    ],
)
def test_bad_fields_raise_with_name_and_value(field, bad):
    with pytest.raises(ValueError) as error:
        FNAConfig(**{"layers": (1,), "num_landmarks": 8, field: bad})
    assert field in str(error.value) and repr(bad) in str(error.value)
