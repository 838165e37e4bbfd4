"""A model on photographs: errors, agreement of maps, speeds, pictures; and that a run goes on."""

import importlib
import json

import jax
import numpy as np
import pytest
from flax import nnx

from evals.data import photographs
from evals.jobs.pretrained import job, pareto
from evals.jobs.pretrained.pictures import component_colours
from evals.jobs.pretrained.report import pretrained_report
from evals.tasks.saliency.comparison import looked_at, map_agreement, token_errors
from tests import zoo
from tests.evals.conftest import write_image
from training.companions import write_companions

SIZE, NUM_TOKENS, NUM_PHOTOGRAPHS = 32, 17, 3


class TinyDecoder(nnx.Module):
    """The first channel of each patch, enlarged."""

    def __call__(self, patches, grid, image_shape):
        x = jax.nn.sigmoid(patches[..., 0].reshape(-1, *grid))
        return jax.image.resize(x, (len(x), *image_shape), "nearest")


def short_settings(model):
    """The settings of `configs/pretrained.py`, cut to seconds."""
    config = importlib.import_module("configs.pretrained").get_config()
    config.model, config.image_sizes = str(model), (SIZE,)
    config.num_pictures, config.repeats = 1, 1
    config.fna.layers, config.fna.num_landmarks, config.fna.kept = "all", (8,), (50,)
    config.fna.methods = ("fps", "tome", "drop", "smaller")
    return config


@pytest.fixture(scope="module")
def own_photographs(tmp_path_factory):
    """Noise in place of the packages' photographs."""
    folder = tmp_path_factory.mktemp("photographs")
    files = [folder / f"photograph{i}.png" for i in range(NUM_PHOTOGRAPHS)]
    for i, file in enumerate(files):
        write_image(file, seed=i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(photographs, "_file", lambda name: files[int(name)])
        patch.setitem(photographs.HALVES, "report", tuple(map(str, range(NUM_PHOTOGRAPHS))))
        patch.setattr(job, "load_decoder", lambda folder: TinyDecoder())
        yield


@pytest.fixture(scope="module")
def finished(own_photographs, small_model, tmp_path_factory):
    config, workdir = short_settings(small_model), tmp_path_factory.mktemp("pretrained")
    text = pretrained_report(config, workdir)
    return config, workdir, text, json.loads((workdir / "pretrained.json").read_text())


def test_exact_attention_agrees_with_itself():
    tokens = np.random.default_rng(0).standard_normal((2, 10, 4)).astype(np.float32)
    errors = token_errors(tokens, tokens, num_prefix=1)
    assert errors == {"class_token_error": [0, 0], "patch_error": [0, 0]}
    agreement = map_agreement(tokens, tokens)
    assert agreement["intersection_over_union"] == [1, 1]
    np.testing.assert_allclose(agreement["correlation"], 1)


def test_errors_are_relative_and_of_each_kind_of_token():
    exact = np.ones((1, 5, 4), np.float32)
    approximate = exact.copy()
    approximate[:, 0] *= 1.5
    approximate[:, 3:] = 0  # half of the patches
    errors = token_errors(approximate, exact, num_prefix=1)
    assert errors["class_token_error"] == [0.5]
    np.testing.assert_allclose(errors["patch_error"], np.sqrt(1 / 2))
    assert token_errors(approximate, exact, num_prefix=0).keys() == {"patch_error"}


def test_a_fifth_is_looked_at_and_shifts_and_scales_do_not_matter():
    maps = np.random.default_rng(0).random((2, 10, 20))
    assert looked_at(maps[0]).mean() == 0.2
    agreement = map_agreement(0.5 * maps + 0.1, maps)
    assert agreement["intersection_over_union"] == [1, 1]
    np.testing.assert_allclose(agreement["correlation"], 1)
    opposite = map_agreement(-maps, maps)
    assert opposite["intersection_over_union"] == [0, 0]
    np.testing.assert_allclose(opposite["correlation"], -1)


def test_the_same_token_has_the_same_colour():
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((50, 8)) * [9, 8, 7, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    colours = component_colours(exact, exact)
    assert colours.min() == 0 and colours.max() == 1 and colours.std() > 0.1
    other = exact + [0, 0, 0, 5, 5, 5, 5, 5]  # outside the three components
    np.testing.assert_allclose(component_colours(other, exact), colours, atol=0.01)
    some = rng.permutation(50)[:20]
    np.testing.assert_array_equal(component_colours(exact[some], exact), colours[some])


def test_a_run_measures_every_attention(finished):
    _, workdir, text, results = finished
    exact, fna, *others = results["table"]
    assert exact["method"] == "exact" and exact["times exact"] == 1
    assert (fna["px"], fna["method"], fna["num_landmarks"]) == (SIZE, "fps", 8)
    assert fna["tokens"] == NUM_TOKENS
    errors = next(point for point in results["points"] if point["task"] == "errors")
    of_photographs = ("class_token_error", "patch_error", "correlation", "intersection_over_union")
    for values in (*(errors[name] for name in of_photographs), *errors["layer_errors"].values()):
        assert len(values) == NUM_PHOTOGRAPHS and np.isfinite(values).all()
    assert 0 < fna["patch error"] == pytest.approx(np.mean(errors["patch_error"]))
    assert fna["patch error spread"] == pytest.approx(np.std(errors["patch_error"], ddof=1))
    assert "patch error" not in exact and fna["images/s"] > 0 and fna["compile s"] >= 0
    assert f"{NUM_PHOTOGRAPHS} photographs (--config.half=report)" in text
    tome, drop, smaller = others
    for row in (tome, smaller):
        assert row["kept"] == 50 and row["patch error"] > 0 and 0 <= row["map IoU"] <= 1
    assert drop["class token error"] > 0 and not {"patch error", "map IoU"} & drop.keys()
    assert smaller["GMAC"] < tome["GMAC"] < exact["GMAC"] and drop["GMAC"] < exact["GMAC"]
    names = {"pretrained.csv", f"tokens-{SIZE}.png", f"saliency-{SIZE}.png"}
    names |= {"pareto-pooled.png", "pareto-dense.png"}
    assert names <= {file.name for file in workdir.iterdir()}


@pytest.fixture(scope="module")
def tokens(finished):
    """Exact attention's, FNA's, and those that the layers were compared on."""
    bench, (exact, fna, *_) = job.open_bench(finished[0])  # at the precision of the run
    return bench.tokens(exact, SIZE), bench.tokens(fna, SIZE), bench.compared(fna, SIZE)[0]


def test_errors_are_of_the_attention_and_nothing_else(finished, tokens):
    exact, approximate, compared = tokens
    np.testing.assert_allclose(compared, exact, atol=1e-5)
    point = next(point for point in finished[-1]["points"] if point["task"] == "errors")
    errors = token_errors(approximate, exact, num_prefix=1)
    for name, values in errors.items():
        np.testing.assert_allclose(point[name], values, rtol=1e-4)


def test_a_smaller_image_is_brought_to_the_grid_of_the_whole_one():
    x = np.linspace(0, 1, 3)
    plane = x[:, None] + 10 * x[None]  # which resizing bilinearly keeps inside
    tokens = np.concatenate([[-1], plane.ravel()])[None, :, None].astype(np.float32)
    resized = job.resized_patches(tokens, 1, 6)
    assert resized.shape == (1, 37, 1) and resized[0, 0, 0] == -1
    y = (np.arange(1, 5) + 0.5) / 4 - 0.25
    np.testing.assert_allclose(resized[0, 1:, 0].reshape(6, 6)[1:5, 1:5], y[:, None] + 10 * y)


def test_exact_is_a_line_and_rows_without_an_error_are_not_drawn(finished, monkeypatch):
    figures = []
    monkeypatch.setattr(pareto, "save_figure", lambda figure, *_, **__: figures.append(figure))
    rows = finished[-1]["table"]
    assert pareto.draw_pareto(rows, "") == ["pareto-pooled.png", "pareto-dense.png"]
    pooled, dense = ([axis.get_lines() for axis in figure.axes] for figure in figures)
    assert [len(lines) for lines in (*pooled, *dense)] == [1 + 4, 1 + 4, 1 + 3, 1 + 3]
    for lines, cost in zip(dense, ("images/s", "GMAC")):
        exact, *others = (line.get_xydata() for line in lines)
        assert (exact[:, 0] == rows[0][cost]).all()
        points = {(row[cost], row["patch error"]) for row in rows if "patch error" in row}
        assert points == {tuple(point) for line in others for point in line}


def test_without_a_class_token_dropping_has_nothing_to_show(own_photographs, tmp_path):
    config = short_settings(zoo.write("siglip_hf", tmp_path / "siglip"))
    write_companions(tmp_path / "siglip")
    with pytest.raises(ValueError, match="there is only a class token to compare, and"):
        job.open_bench(config)


def test_a_second_run_finds_all_points(finished, monkeypatch):
    config, workdir, text, _ = finished
    for name in ("_errors", "_speeds"):
        monkeypatch.setattr(job, name, lambda *_: pytest.fail("measured again"))
    assert pretrained_report(config, workdir) == text


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("half", "all", "half must be one of report, choose, got 'all'"),
        ("image_sizes", (36,), "36 is no multiple of the patch size 8"),
        ("image_sizes", (32, 32), "image_sizes must be some values, all different"),
        ("num_pictures", 0, "num_pictures must be at least 1"),
        ("fna.num_landmarks", (18,), "more than the 17 tokens of an image of 32 pixels"),
        ("fna.layers", "3:9", "blocks 0 to"),
    ],
)
def test_bad_settings_are_refused(own_photographs, small_model, tmp_path, field, value, message):
    config = short_settings(small_model)
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        pretrained_report(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
