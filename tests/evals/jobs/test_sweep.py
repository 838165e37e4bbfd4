"""Sweeps: the grid, the Pareto front, what is left out, and that a killed one ends the same."""

import collections
import importlib
import json

import numpy as np
import pytest

from evals.jobs.sweep.job import check_arms, grid_arms, sweep
from evals.jobs.sweep.report import format_sweep, pareto_front, sweep_report, sweep_rows
from evals.running.pretrained import open_pretrained
from tests.kills import campaign


def short_sweep(model):
    """The settings of `configs/sweep.py`, cut to seconds."""
    config = importlib.import_module("configs.sweep").get_config()
    config.model = str(model)
    config.num_labelled_scenes, config.num_captioned_scenes = 12, 8
    config.num_fidelity_images, config.batch_size, config.repeats = 2, 6, 1
    config.tasks = ("zero_shot", "fidelity")
    config.grid.num_landmarks, config.grid.features = (4,), ("q",)
    config.grid.resample = (False,)
    config.grid.strategies = ("none", "massive-sink-others")
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_model):
    config, workdir = short_sweep(small_model), tmp_path_factory.mktemp("sweep")
    text = sweep_report(config, workdir)
    return config, workdir, text, json.loads((workdir / "sweep.json").read_text())


def test_the_grid_is_every_combination_and_one_exact_arm_per_size_and_masking(small_model):
    config = short_sweep(small_model)
    grid = config.grid
    grid.image_sizes = (0, 96)
    grid.num_landmarks, grid.features, grid.resample = (4, 8), ("q", "input"), (False, True)
    grid.methods, grid.seeds = ("fps", "random"), (0, 1, 2)
    arms = grid_arms(config, depth=2)
    exact = [arm for arm, _ in arms.values() if arm.fna is None]
    assert len(exact) == 4 and len(arms) == 4 + 4 * (2 * 2 * 2) * (1 + 3)
    assert len({(arm.fna, arm.seed, arm.image_size, arm.strategy) for arm, _ in arms.values()}) == (
        len(arms)
    )
    assert all(arm.name == name for name, (arm, _) in arms.items())
    assert next(iter(arms.values()))[0].fna is None


def test_what_keeps_fewer_tokens_comes_once_for_each_share(small_model):
    config = short_sweep(small_model)
    config.grid.strategies = ("none",)
    config.grid.num_landmarks, config.grid.resample = (4, 8), (False, True)
    config.grid.methods, config.grid.kept = ("tome", "drop", "random_drop", "smaller"), (50, 25)
    config.grid.seeds, config.grid.features = (0, 1), ("q", "k")
    arms = grid_arms(config, depth=2)
    found = collections.Counter(words.get("method") for _, words in arms.values())
    assert found == {None: 1, "tome": 2, "drop": 4, "random_drop": 8, "smaller": 2}
    named = {words["kept %"]: arm.pixels for arm, words in arms.values() if arm.pixels}
    assert named == {50: 0.5, 25: 0.25}
    assert check_arms(arms, open_pretrained(str(small_model)), [np.zeros((64, 64, 3))]) == {}


def test_every_setting_has_a_row_and_what_cannot_run_is_said(finished):
    _, workdir, text, results = finished
    rows = results["table"]
    described = [(row["attention"], row["px"], row["masking"]) for row in rows]
    assert described == [
        ("exact", "own", "none"),
        ("FNA", "own", "none"),
        ("exact", "own", "massive-sink-others"),
    ]
    assert len(results["left_out"]) == 1 and "left out, 1 settings: FNA cannot remove" in text
    assert all(row["images/s"] > 0 and row["zero-shot top-1 %"] >= 0 for row in rows)
    assert [("embedding error" in row) for row in rows] == [
        row["attention"] == "FNA" for row in rows
    ]
    assert {"sweep.csv", "sweep.json", "sweep.png"} <= {file.name for file in workdir.iterdir()}
    assert all(c in format_sweep(rows).splitlines()[0] for c in ("masking", "times exact"))
    assert " S " not in format_sweep(rows).splitlines()[0]  # one choice only


def test_an_image_size_is_what_the_model_sees(small_model):
    config = short_sweep(small_model)
    config.grid.image_sizes = (0, 96)
    backbone = open_pretrained(str(small_model))
    image = np.zeros((64, 64, 3), np.uint8)
    sizes = {
        arm.view(backbone).preprocess(image).shape[0]: arm.image_size
        for arm, _ in grid_arms(config, depth=2).values()
        if arm.fna is None
    }
    assert sizes == {64: None, 96: 96}


def test_the_pareto_front_is_what_nothing_dominates():
    rng = np.random.default_rng(0)
    speed, quality = rng.integers(0, 6, (2, 40)).astype(float)  # with ties and equal points
    speed[3], quality[5] = np.nan, np.nan
    expected = [
        not any(
            a >= speed[i] and b >= quality[i] and (a > speed[i] or b > quality[i])
            for a, b in zip(speed, quality)
        )
        and np.isfinite(speed[i])
        and np.isfinite(quality[i])
        for i in range(40)
    ]
    assert pareto_front(speed, quality).tolist() == expected and 0 < sum(expected) < 40


def test_an_error_is_better_when_it_is_smaller():
    points = [
        {"arm": name, "task": "fidelity", "embedding_error": error}
        for name, error in (("a", 0.1), ("b", 0.2))
    ]
    speed = {"arm": "own-px", "task": "speed"}
    speed |= {"images_per_second": {"a": 5.0, "b": 5.0}, "speedup": {"a": 1.0, "b": 1.0}}
    settings = {name: {"S": size} for name, size in (("a", 8), ("b", 4))}
    rows = sweep_rows({"points": [*points, speed], "settings": settings})
    assert [row["front"] for row in rows] == ["embedding error", ""]


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("tasks", ("zero_shoot",), "zero_shot"),
        ("grid.num_landmarks", (), "grid.num_landmarks"),
        ("grid.num_landmarks", (4, 4), "grid.num_landmarks"),
        ("grid.num_landmarks", (4, 400), "num_landmarks=400"),
        ("grid.image_sizes", (-5,), "-5 pixels"),
        ("grid.image_sizes", (97,), "97"),
        ("grid.strategies", ("massive-sinks",), "massive-sink"),
        ("grid.layers", ("1:9",), "0 to 1"),
        ("repeats", 0, "repeats"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    small_model, tmp_path, field, value, message
):
    config = short_sweep(small_model)
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        sweep(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_killed_at_random_points_it_ends_with_the_same_table(tmp_path):
    assert sum(run["kills"] for run in campaign(2, tmp_path)) == 2
