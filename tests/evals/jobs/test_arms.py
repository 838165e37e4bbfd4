"""The settings of the attentions that a run compares."""

import dataclasses

import pytest

from configs import eval as eval_config
from evals.jobs.arms import (
    COLOURS,
    INSTEAD,
    METHOD_NAMES,
    METHODS,
    WITHOUT_NUMBER,
    Arm,
    described,
    make_arms,
    settings_of,
    strength,
)
from evals.running.pretrained import open_backbone
from fna_jax import FNAConfig
from models import TokenDropping, TokenMerging


def test_every_method_takes_the_settings_that_it_has_a_use_for():
    fna = eval_config.get_config().fna
    fna.methods, fna.num_landmarks, fna.seeds = tuple(METHODS), (8,), (3,)
    fna.features, fna.resample, fna.exclude, fna.inverse_steps = "v", True, "massive_by_norm", 5
    fna.centroid.windows, fna.centroid.near = 4, 1
    exact, *arms = make_arms(fna, 4)
    assert exact.fna is None
    assert [arm.method for arm in arms] == list(METHODS)
    of_fna = FNAConfig("2:4", 8, "v", resample=True, exclude="massive_by_norm", inverse_steps=5)
    near = FNAConfig("2:4", 8, approximation="centroid", windows=4, near=1)
    of_keys = dataclasses.replace(near, features="k", resample=True)
    assert [arm.fna for arm in arms] == [
        of_fna,
        dataclasses.replace(of_fna, method="random"),
        dataclasses.replace(of_keys, exclude="massive_by_norm"),
        dataclasses.replace(of_keys, partition="kmeans"),
        dataclasses.replace(near, partition="windows"),
        dataclasses.replace(of_keys, exclude="massive_by_norm", residual=False),
    ]
    assert METHOD_NAMES.keys() == COLOURS.keys() == {*WITHOUT_NUMBER, *METHODS, *INSTEAD}


def test_every_method_number_and_seed_is_an_arm():
    fna = eval_config.get_config().fna
    fna.methods, fna.num_landmarks, fna.seeds = ("fps", "random", "centroid"), (4, 8), (0, 1)
    exact, *arms = make_arms(fna, 4)
    names = {f"{method}-{number}" for method in ("fps", "centroid") for number in (4, 8)}
    names |= {f"random-{number}-seed{seed}" for number in (4, 8) for seed in (0, 1)}
    assert exact.name == "exact" and len(arms) == 8 and {arm.name for arm in arms} == names


def test_what_people_use_instead_keeps_a_share_of_the_tokens():
    fna = eval_config.get_config().fna
    fna.methods, fna.kept, fna.seeds = ("tome", "drop", "random_drop", "smaller"), (40,), (3, 4)
    fna.features, fna.layers, fna.merging.proportional = "k", "1:4", False
    _, tome, drop, random, other, smaller = make_arms(fna, 6)
    assert tome.reduction == TokenMerging(0.1, "0:6", proportional=False)
    assert drop.reduction == TokenDropping(0.4, 1, "k")
    assert random.reduction == other.reduction == TokenDropping(0.4, 1, "k", "random")
    assert (random.seed, other.seed, smaller.pixels) == (3, 4, 0.4)
    assert [arm.name for arm in (tome, other)] == ["tome-40", "random_drop-40-seed4"]
    assert described(other.name) == {"method": "random_drop", "num_landmarks": None, "kept": 40}
    assert described("fps-8") == {"method": "fps", "num_landmarks": 8}
    assert [strength(described(name)) for name in ("tome-40", "fps-8", "exact")] == [
        "40 %",
        "8",
        "",
    ]
    assert not any(arm.fnas or arm.sees_all for arm in (tome, drop, smaller))


def test_a_smaller_image_has_whole_patches(small_model):
    backbone = open_backbone(str(small_model))
    sides = {
        (size, pixels): Arm(image_size=size, pixels=pixels).view(backbone).preprocess.side()
        for size, pixels in ((None, 0.5), (None, 0.001), (96, 0.25))
    }
    assert list(sides.values()) == [48, 8, 48]


@pytest.mark.parametrize("kept", [0, 100, 0.5, True])
def test_a_share_that_is_none_is_refused(kept):
    fna = eval_config.get_config().fna
    with fna.ignore_type():
        fna.methods, fna.kept = ("smaller",), (kept,)
    with pytest.raises(ValueError, match="kept must be percent of the tokens, from 1 to 99"):
        make_arms(fna, 4)


def test_where_only_attentions_belong_the_others_are_refused():
    with pytest.raises(ValueError, match="'tome' is no attention of some blocks"):
        settings_of("tome", {}, layers=(0,), num_landmarks=8)


def test_an_unknown_method_is_refused_with_the_likely_one():
    fna = eval_config.get_config().fna
    fna.methods = ("kmean",)
    with pytest.raises(ValueError, match="did you mean 'kmeans'"):
        make_arms(fna, 4)
