"""The settings of the attentions that a run compares."""

import dataclasses

import pytest

from configs import eval as eval_config
from evals.jobs.arms import METHOD_NAMES, METHODS, WITHOUT_NUMBER, make_arms
from fna_jax import FNAConfig


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
    ]
    assert METHOD_NAMES.keys() == {*WITHOUT_NUMBER, *METHODS}


def test_an_unknown_method_is_refused_with_the_likely_one():
    fna = eval_config.get_config().fna
    fna.methods = ("kmean",)
    with pytest.raises(ValueError, match="did you mean 'kmeans'"):
        make_arms(fna, 4)
