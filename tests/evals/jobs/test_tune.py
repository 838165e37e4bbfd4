"""The attention under an error budget: the search, its json, and the configs that read it."""

import dataclasses
import itertools
import json
import re

import numpy as np
import pytest
from flax import nnx

import models
from configs.tune import get_config
from evals.data import Batch
from evals.jobs.cost import vision_cost
from evals.jobs.evaluate.report import evaluation_report
from evals.jobs.opening import open_images, open_named
from evals.jobs.tune import job
from evals.jobs.tune.blockwise import OUTPUTS, Blockwise
from evals.jobs.tune.choice import furthest_within, greedy_path
from evals.jobs.tune.job import tune_report
from evals.jobs.tuned import read_tuned, write_tuned
from evals.running.embed import Embedder
from evals.tasks.fidelity import fidelity
from fna_jax import FNAConfig
from models.attends import relative_error
from models.registry import vision_config
from tests.conftest import random_images, rel_max_error
from tests.models.test_every_family import tiny

CENTROID = dict(approximation="centroid", features="k", resample=True)
FNAS = (
    FNAConfig((0, 2), 8, resample=True, inverse_steps=5),
    FNAConfig((1,), 4, windows=4, near=1, **CENTROID),
)


def total(choice, errors, saved):
    """What a choice saves, and its error."""
    chosen = [(block, candidate) for block, candidate in enumerate(choice) if candidate is not None]
    return sum(saved[k] for _, k in chosen), sum(errors[b, k] for b, k in chosen)


def test_no_choice_on_the_path_is_beaten():
    """Against all choices: what saves as much has at least the error."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        errors, saved = rng.uniform(size=(3, 4)), rng.integers(1, 6, size=4)
        path = greedy_path(errors, saved)
        assert path[0] == (None,) * 3 and total(path[-1], errors, saved)[0] == 3 * saved.max()
        choices = itertools.product([None, *range(4)], repeat=3)
        every = [total(choice, errors, saved) for choice in choices]
        of_path = [total(choice, errors, saved) for choice in path]
        for gain, error in of_path:
            assert error <= min(e for g, e in every if g >= gain) + 1e-12
        gains = [gain for gain, _ in of_path]
        assert gains == sorted(set(gains))


class Counted:
    """The errors of choices by number, with the times that one was asked for."""

    def __init__(self, errors):
        self.errors, self.calls = errors, 0

    def __call__(self, choice):
        self.calls += 1
        return self.errors[choice]


@pytest.mark.parametrize("length", [1, 2, 9])
def test_bisection_finds_what_a_scan_finds(length):
    for budget in (0, 0.5, length - 1, 99):
        counted = Counted(range(length))
        found = furthest_within(range(length), counted, budget)
        assert found == min(int(budget), length - 1) and counted.calls <= 4


@pytest.mark.slow
def test_block_by_block_is_the_view_as_a_whole():
    """Of a model with rotary positions, which blocks alone know nothing of."""
    model, images = tiny("dinov3"), random_images(batch=3)
    run, depth = nnx.jit(lambda model, x: model(x)), vision_config(model.config).encoder.depth
    fna = FNAConfig((0,), 8, resample=True)
    padded = Batch(np.concatenate([images, 0 * images[:1]]), np.array([0, 1, 2, -1]))
    for output in OUTPUTS:
        walk = Blockwise(model, [padded], output)
        errors = walk.errors([fna], ["fps"])
        exact, view = (
            OUTPUTS[output](model, seen.tokens, seen.pooled)
            for seen in (run(model, images), run(models.with_attention(model, fna), images))
        )
        found = walk.output_errors([fna] + [None] * (depth - 1))
        # Measured: 1e-5, float32 noise over the error.
        assert rel_max_error(found, relative_error(view, exact)) < 1e-4
        assert rel_max_error(errors.predicted[0], [found.mean()]) < 1e-4
        assert walk.output_errors([None] * depth).max() < 1e-6


def test_what_is_written_is_read(tmp_path):
    for fnas in ((), FNAS):
        write_tuned(tmp_path / "tune.json", fnas, 3, {"anything": 1})
        assert read_tuned(tmp_path / "tune.json", 3) == fnas
    assert [file.name for file in tmp_path.iterdir()] == ["tune.json"]


@pytest.mark.parametrize(
    "content, says",
    [
        ("{", "is no json"),
        ("[]", "expected an object"),
        ('{"depth": 3}', "the field 'fna' is missing"),
        ('{"depth": 4, "fna": []}', "for a model of 4 blocks, and this one has 3"),
        ('{"depth": 3, "fna": {}}', "must be a list"),
        ('{"depth": 3, "fna": [], "fan": []}', "unknown field 'fan'; did you mean 'fna'?"),
        ('{"depth": 3, "fna": [3]}', "expected an object"),
        ('{"depth": 3, "fna": [{"layers": [0]}]}', "'num_landmarks' is missing"),
        ('{"depth": 3, "fna": [{"layers": [0], "num_landmarks": 0}]}', "num_landmarks must be"),
        ('{"depth": 3, "fna": [{"layers": [3], "num_landmarks": 8}]}', "block 3 is beyond 0 to 2"),
        (
            '{"depth": 3, "fna": [{"layers": [0], "num_landmark": 8}]}',
            "unknown field 'num_landmark'; did you mean 'num_landmarks'?",
        ),
        (
            '{"depth": 3, "fna": [{"layers": [0], "num_landmarks": 8},'
            ' {"layers": [0, 1], "num_landmarks": 4}]}',
            "in the layers of two configs",
        ),
    ],
)
def test_a_bad_json_is_one_line_that_names_it(content, says, tmp_path):
    file = tmp_path / "tune.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        read_tuned(file, 3)
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def tuned(small_model, tmp_path_factory):
    """By budget: what is printed, and the folder."""
    found = {}
    for budget in (100.0, 0.0):
        folder = tmp_path_factory.mktemp("tuned")
        found[budget] = tune_report(config := settings(small_model, budget), folder), folder
    return config, found


def settings(small_model, budget):
    config = get_config()
    config.model, config.budget = str(small_model), budget
    config.num_images, config.batch_size, config.repeats = 6, 3, 1
    config.candidates.methods, config.candidates.num_landmarks = ("fps", "centroid"), (4,)
    config.candidates.windows = (0,)
    return config


def test_a_huge_budget_takes_the_cheapest_in_every_block(tuned):
    config, found = tuned
    text, folder = found[100.0]
    (fna,) = read_tuned(folder / "tune.json", 2)
    assert fna.layers == (0, 1) and fna.num_landmarks == 4
    encoder = vision_config(open_named(config).model.config).encoder
    refined = CENTROID | dict(resample=False, refine=1)
    others = FNAConfig("0:2", 4, resample=True), FNAConfig("0:2", 4, **refined)
    assert fna == min(others, key=lambda other: vision_cost(encoder, 65, other).fna)
    assert "times less arithmetic" in text and str(folder / "tune.json") in text


def test_the_error_told_is_that_of_the_view_read_back(tuned):
    config, found = tuned
    text, folder = found[100.0]
    record = json.loads((folder / "tune.json").read_text())["measured"]
    backbone = open_named(config)
    view = backbone.with_attention(read_tuned(folder / "tune.json", 2))
    for kind, part in (("held_out", slice(1, None, 2)), ("deciding", slice(0, None, 2))):
        images = open_images(config)[part]
        expected = fidelity(view, images, Embedder(3))["embedding_error"]
        assert abs(record[f"error_{kind}"] - expected) < 1e-5 * expected
        assert f"{record[f'error_{kind}']:.4f} on " in text and record[f"num_{kind}"] == len(images)


@pytest.mark.parametrize("errors, kept", [([0.08, 0.1], True), ([0.08, 0.12], False)])
def test_clusters_are_handed_on_where_that_keeps_the_budget(monkeypatch, errors, kept):
    """Two errors of mean m and half their difference d keep a budget of m + 2 d."""
    monkeypatch.setattr(job, "output_errors", lambda *arguments: np.array(errors))
    far, alone = FNAConfig("0:2", 4, **CENTROID), FNAConfig("2:3", 8, **CENTROID)
    fna = FNAConfig("3:5", 8, resample=True)
    blocks = [job.Candidate("centroid", far, 1)] * 2 + [job.Candidate("centroid", alone, 1)]
    blocks += [job.Candidate("fps", fna, 1)] * 2
    choice, config = job.Choice(tuple(blocks), (0.1,) * 5, 0.05), get_config()
    config.budget = 0.1101
    fnas, error = job.handed_on(choice, None, None, config)
    refined = dataclasses.replace(far, resample=False, refine=1)
    assert fnas == ((refined if kept else far), alone, fna)
    assert error == (pytest.approx(0.09) if kept else 0.05)


def test_no_budget_is_exact_attention(tuned):
    text, folder = tuned[1][0.0]
    assert read_tuned(folder / "tune.json", 2) == ()
    assert "Exact attention in all blocks: none of 2 candidates" in text


def test_where_nothing_saves_arithmetic_it_says_so(small_model, tmp_path):
    config = settings(small_model, 100.0)
    config.candidates.num_landmarks = (64,)
    assert "at 65 tokens no candidate saves arithmetic" in tune_report(config, tmp_path)
    assert read_tuned(tmp_path / "tune.json", 2) == ()


@pytest.mark.slow
@pytest.mark.parametrize("budget, runs", [(100.0, True), (0.0, False)])
def test_an_evaluation_takes_what_was_tuned(tuned, short_config, tmp_path, budget, runs):
    file = tmp_path / "tune.json"
    file.write_bytes((tuned[1][budget][1] / "tune.json").read_bytes())
    config, short_config.fna.tuned = short_config, str(file)
    config.fna.methods, config.tasks = (), ("zero_shot", "fidelity")
    text = evaluation_report(config, tmp_path / "run")
    points = json.loads((tmp_path / "run" / "results.json").read_text())["points"]
    arms = [(point["arm"], point["task"]) for point in points]
    assert arms == [
        ("exact", "zero_shot"),
        ("tuned", "zero_shot"),
        *[("tuned", "fidelity")] * runs,
    ]
    assert "| tuned |" in text and ("that of the tuned settings" in text) == runs
    write_tuned(file, FNAS[1:], 2, {})  # where it lies
    with pytest.raises(ValueError, match=r"other settings \(tuned\)"):
        evaluation_report(config, tmp_path / "run")
