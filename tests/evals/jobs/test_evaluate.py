import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import models
from evals.data.datasets import open_data
from evals.jobs.arms import METHOD_NAMES, make_arms
from evals.jobs.evaluate import report
from evals.jobs.evaluate.job import evaluate, landmark_examples
from evals.jobs.evaluate.report import format_table, table_rows, write_report
from evals.jobs.landmark_map import landmark_points
from evals.running.embed import Embedder
from evals.running.pretrained import open_pretrained
from evals.tasks import table
from evals.tasks.fidelity import fidelity
from evals.tasks.zero_shot import zero_shot
from fna_jax import FNAConfig
from tests import zoo
from tests.conftest import REFERENCES
from tests.evals.conftest import short_settings, write_image
from training.companions import write_companions

TIMES = ("compile_seconds", "images_per_second")


def without_times(points):
    return [{k: v for k, v in point.items() if k not in TIMES} for point in points]


def run(config, workdir):
    return without_times(evaluate(config, workdir)["points"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small_model):
    """The results of one short run, and its folder."""
    config = short_settings(small_model)
    workdir = tmp_path_factory.mktemp("finished")
    return config, evaluate(config, workdir), workdir


def test_every_arm_runs_every_task(finished):
    _, results, _ = finished
    tasks = {}
    for point in results["points"]:
        tasks.setdefault(point["arm"], set()).add(point["task"])
    assert tasks.pop("exact") == {"zero_shot", "retrieval"}
    assert set(tasks) == {"fps-4", "centroid-4", "random-4-seed0", "random-4-seed1"}
    assert all(done == {"zero_shot", "retrieval", "fidelity"} for done in tasks.values())


@pytest.mark.slow
def test_fewer_tokens_are_evaluated_where_they_have_a_meaning(short_config, tmp_path):
    short_config.tasks = ("zero_shot", "fidelity")
    short_config.fna.methods, short_config.fna.kept = ("tome", "drop", "smaller"), (50,)
    results = evaluate(short_config, tmp_path)
    names = [(point["arm"], point["task"]) for point in results["points"]]
    assert names == [(f"{m}", "zero_shot") for m in ("exact", "tome-50", "drop-50", "smaller-50")]
    text = write_report(results, tmp_path, landmarks=landmark_examples(short_config))
    assert "| token merging | 50 % |" in text and (tmp_path / "quality.png").is_file()
    assert not (tmp_path / "landmarks.png").exists()

    backbone, arms = open_pretrained(short_config.model), make_arms(short_config.fna, 2)
    data = {"segmented split": object()}
    jobs = table.jobs_of(arms, ["segmentation"], backbone, data, None, short_config)
    assert [name for name, _, _ in jobs] == ["exact"]


def test_massive_tokens_are_no_landmarks_where_asked(short_config):
    short_config.fna.exclude = "massive_by_norm"
    exact, *arms = make_arms(short_config.fna, 2)
    assert exact.fna is None and arms
    assert {arm.fna.exclude for arm in arms} == {"massive_by_norm"}


@pytest.mark.slow
def test_killed_run_continues_and_ends_with_the_same_points(finished, tmp_path, monkeypatch):
    config, results, _ = finished
    real_run, count = table.run_task, 0

    def killed_at_the_fifth(*args):
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return real_run(*args)

    monkeypatch.setattr(table, "run_task", killed_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path)
    assert len(list((tmp_path / "points").iterdir())) == 4
    assert run(config, tmp_path) == without_times(results["points"])
    assert count == 1 + len(results["points"])  # the killed one again, none twice


def test_workdir_of_other_settings_is_refused(finished):
    config, _, workdir = finished
    other = config.copy_and_resolve_references()
    other.fna.resample = True
    with pytest.raises(ValueError, match="other settings"):
        evaluate(other, workdir)


def test_model_replaced_at_the_same_path_is_not_mixed_in(finished, tmp_path, monkeypatch):
    config, _, _ = finished
    monkeypatch.setattr(table, "run_task", lambda *args: {})
    evaluate(config, tmp_path)
    monkeypatch.setattr(type(open_pretrained(config.model)), "fingerprint", lambda self: "other")
    with pytest.raises(ValueError, match="model_sha256"):
        evaluate(config, tmp_path)


@pytest.mark.parametrize(
    "field, value",
    [
        ("batch_size", 0),
        ("num_fidelity_images", -5),
        ("num_images", 3),  # of the embedded scenes
        ("templates", ("{}",)),
        ("data_images", "somewhere"),
        ("fna.seeds", (0, 0)),
        ("fna.num_landmarks", (8, 8)),
        ("fna.methods", ()),
        ("num_captioned_scenes", 20_000),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_runs(
    short_config, tmp_path, field, value
):
    short_config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError):
        evaluate(short_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_embeddings_that_are_not_finite_are_refused(short_config):
    pretrained = open_pretrained(short_config.model)
    model = nnx.clone(pretrained.model)
    model.vision_projection.kernel[...] = jnp.full_like(model.vision_projection.kernel[...], np.nan)
    labelled = open_data("labelled", short_config)
    with pytest.raises(ValueError, match="12 of 12 image embeddings hold NaN"):
        zero_shot(dataclasses.replace(pretrained, model=model), labelled, Embedder(8))


def test_random_landmarks_spread_and_fps_does_not(finished):
    rows = {row["attention"]: row for row in table_rows(finished[1])}
    assert rows["random-4"]["embedding error spread"] > 0
    assert rows["fps-4"]["embedding error spread"] is None
    assert "embedding error" not in rows["exact"]


def test_report_files_hold_the_table(finished):
    config, results, workdir = finished
    text = write_report(results, workdir, landmarks=landmark_examples(config))
    rows = table_rows(results)
    assert format_table(rows) in text and results["advice"] in text
    assert json.loads((workdir / "results.json").read_text())["table"] == rows
    with open(workdir / "results.csv") as file:
        read = list(csv.DictReader(file))
    assert [row["attention"] for row in read] == [row["attention"] for row in rows]
    assert float(read[1]["embedding error"]) == rows[1]["embedding error"]
    assert {row["jax"] for row in read} == {jax.__version__}
    for name in ("quality.png", "landmarks.png"):
        with Image.open(workdir / name) as image:
            assert min(image.size) > 200 and len(np.unique(image)) > 20


def test_exact_is_a_line_only_where_it_was_measured(finished, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "_save", lambda figure, file: figures.append(figure))

    def exact_lines():
        """By panel, the heights of lines called exact."""
        report.plot_quality(rows, "quality.png")
        panels = {axis.get_title(): axis.lines for axis in figures.pop().axes}
        return {
            title: [line.get_ydata()[0] for line in lines if line.get_label() == "exact"]
            for title, lines in panels.items()
        }

    rows = table_rows(finished[1])
    expected = {name: [rows[0][name]] for name in rows[0] if name in report.ACCURACIES}
    assert exact_lines() == expected | {"embedding error": []}
    rows = [row for row in rows if row["method"] != "exact"]  # as with --config.tasks=fidelity
    assert not any(exact_lines().values())


def test_the_legend_covers_no_panel(finished, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "_save", lambda figure, file: figures.append(figure))
    report.plot_quality(table_rows(finished[1]), "quality.png")
    (figure,) = figures
    figure.draw_without_rendering()
    assert not any(axis.get_legend() for axis in figure.axes)
    (legend,) = figure.legends
    labels = {text.get_text() for text in legend.get_texts()}
    assert labels == {METHOD_NAMES[row["method"]] for row in table_rows(finished[1])}
    box = legend.get_window_extent()
    assert not any(box.overlaps(axis.get_tightbbox()) for axis in figure.axes)


@pytest.mark.slow
def test_fidelity_vanishes_when_every_token_is_a_landmark(short_config):
    pretrained = open_pretrained(short_config.model)
    images = open_data("images", short_config)
    errors = {}
    for num_landmarks, steps in ((4, 6), (65, 6), (65, 24)):
        fna = FNAConfig((0, 1), num_landmarks, inverse_steps=steps)
        record = fidelity(pretrained.with_attention(fna), images, Embedder(4))
        assert set(record["layer_errors"]) == {"0", "1"}
        errors[num_landmarks, steps] = [*record["layer_errors"].values(), record["embedding_error"]]
    # Measured: 0.06 and more, 6e-3 and more, at most 6.3e-4.
    assert max(errors[65, 24]) < 5e-3 < min(errors[65, 6]) < 0.05 < min(errors[4, 6])


def test_fidelity_does_not_depend_on_the_batch_size(short_config):
    pretrained = open_pretrained(short_config.model).with_attention(FNAConfig((1,), 4))
    images = open_data("images", short_config)
    one, other = (fidelity(pretrained, images, Embedder(size)) for size in (6, 4))
    # An error is a difference of numbers 10 to 100 times as large, each rounded at 1e-7.
    assert one["embedding_error"] == pytest.approx(other["embedding_error"], rel=1e-4)
    assert one["layer_errors"] == pytest.approx(other["layer_errors"], rel=1e-4)


@pytest.mark.slow
def test_pytorch_files_of_a_clip_are_evaluated_on_an_image_folder(tmp_path, short_config):
    source = tmp_path / "clip"
    source.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(REFERENCES / "clip_tiny" / name, source)
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        open_pretrained(str(source))
    write_companions(source)
    for index in range(4):
        write_image(tmp_path / "data" / f"class_{index % 2}" / f"{index}.jpg", seed=index)
    short_config.model, short_config.data = str(source), str(tmp_path / "data")
    short_config.templates = ("a {} at the top", "{}")
    short_config.fna.methods, short_config.fna.num_landmarks = ("fps",), (4,)
    points = run(short_config, tmp_path / "run")
    assert {point["task"] for point in points} == {"zero_shot", "fidelity"}
    assert points[0]["num_images"] == 4


@pytest.fixture
def siglip(tmp_path):
    """A checkpoint by whose patches scenes of 64 pixels are 64 tokens, none of them a class."""
    source = zoo.write("siglip_hf", tmp_path / "siglip")
    write_companions(source)
    return source


@pytest.mark.slow
def test_siglip_without_a_class_token_is_evaluated(tmp_path, short_config, siglip):
    short_config.model, short_config.fna.methods = str(siglip), ("fps",)
    short_config.fna.num_landmarks = (64,)
    results = evaluate(short_config, tmp_path / "run")
    assert {point["task"] for point in results["points"]} == {"zero_shot", "retrieval", "fidelity"}
    assert "At 64 tokens" in results["advice"]


def test_all_tokens_of_siglip_may_be_landmarks(tmp_path, short_config, siglip):
    pretrained = open_pretrained(str(siglip)).with_attention(FNAConfig((1,), 64))
    (points,) = landmark_points(pretrained, np.zeros((1, 64, 64, 3), np.float32))
    assert len(np.unique(points, axis=0)) == 64  # every patch, the first one too
    short_config.model, short_config.fna.num_landmarks = str(siglip), (65,)
    with pytest.raises(ValueError, match="more than the 64 tokens"):
        evaluate(short_config, tmp_path / "other")


def test_a_model_without_a_text_tower_is_refused(tmp_path):
    encoder = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    model = models.create("dinov2-vit-s-14", rngs=nnx.Rngs(0), image_size=28, encoder=encoder)
    models.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="dinov2, which has no text tower"):
        open_pretrained(str(tmp_path / "model"))


def test_missing_data_are_refused(tmp_path, short_config):
    short_config.data = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate(short_config, tmp_path / "run")
