"""FastNystromAttention with centroid attention."""

import dataclasses

import jax
import numpy as np
import pytest

from fna_jax import FastNystromAttention, FNAConfig, exact_attention
from fna_jax.layers import attend_in_layer, partition_in_layer
from tests.conftest import few, random_qkv, rel_max_error

CENTROID = dict(approximation="centroid", features="k")


@pytest.mark.parametrize(
    "settings",
    few(
        [
            dict(num_landmarks=5),
            dict(num_landmarks=6, partition="kmeans", grid=(3, 5)),
            dict(num_landmarks=4, windows=6, near=1, grid=[3, 5], guarantee=(0, 1)),
        ],
        [dict(num_landmarks=4, windows=6, near=1, grid=[3, 5], guarantee=(0, 1))],
    ),
)
def test_centroid_attention_is_a_choice(settings):
    attend = FastNystromAttention(**CENTROID | settings)
    prefix = len(attend.guarantee)
    query, key, value = random_qkv(tokens=15 + prefix)
    mask = np.arange(15 + prefix) < np.array([[15 + prefix], [11]])
    of_layer = dict(grid=(3, 5), num_prefix=prefix, key_mask=mask)
    fields = {name: v for name, v in settings.items() if name not in ("grid", "guarantee")}
    config = FNAConfig((0,), **CENTROID | fields)

    @jax.jit
    def both(query, key, value):
        states = {"q": query, "k": key, "v": value}
        clusters = partition_in_layer(states, config, None, **of_layer)
        out = attend(query, key, value, mask=mask[:, None, None])
        return out, attend_in_layer(query, key, value, clusters, config, **of_layer)

    assert rel_max_error(*both(query, key, value)) < 2e-6
    assert hash(attend) == hash(dataclasses.replace(attend))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(windows=4), r"pass grid=\(h, w\)"),
        (dict(partition="kmeans"), r"pass grid=\(h, w\)"),
        (dict(grid=(3, 5)), "needs windows"),
        (dict(grid=(3,), windows=4), "grid must be two numbers"),
        (dict(guarantee=(1,)), "must name the first tokens"),
        (dict(near=1), "near=1 needs windows"),
        (dict(inverse_steps=5), "inverse_steps=5 needs approximation='nystrom'"),
    ],
)
def test_settings_of_centroids_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FastNystromAttention(6, **CENTROID | settings)


def test_a_grid_of_other_tokens_is_refused_or_exact():
    settings = CENTROID | dict(windows=4, grid=(4, 4))
    qkv = random_qkv(tokens=16)
    with pytest.raises(ValueError, match="16 tokens, but 1 in front of a grid"):
        FastNystromAttention(5, **settings)(*qkv)
    out = jax.jit(FastNystromAttention(5, otherwise="exact", **settings))(*qkv)
    assert rel_max_error(out, jax.jit(exact_attention)(*qkv)) < 2e-6
