"""The analysis of tokens: its numbers on a planted model, its page on files of any sort."""

import base64
import functools
import html.parser
import importlib
import io
import json
import shutil
import subprocess
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import models
from evals.data import image_files
from evals.jobs.analysis.groups import grouped_attention, grouped_suppression, membership
from evals.jobs.analysis.job import analyze
from evals.jobs.analysis.measure import (
    Plan,
    find_tokens,
    largest_norms_unattended,
    measure,
    measure_batch,
)
from evals.jobs.analysis.page import render
from evals.jobs.analysis.pictures import draw
from evals.jobs.analysis.results import in_words, summarize
from fna_jax import suppression_matrix
from fna_jax.tokens import attention_weights
from tests.conftest import random_images, rel_max_error
from tests.models.test_every_family import tiny
from tests.planted import SINK, SUPPRESS, planted_images, planted_model
from training.companions import write_companions

PLAN = Plan(block=SINK, first_block=SUPPRESS, blocks=(2, 3), massive="norm", max_sinks=8)
PLANTED = planted_images(0, 20)
CLASS, MASSIVE, ARTIFACT, NORMAL, ITSELF = range(5)
the_model = functools.cache(planted_model)


def measured(batch_size):
    options = dict(batch_size=batch_size, num_examples=9)
    return measure(the_model(), list(PLANTED.images), lambda image: image, PLAN, **options)


@pytest.fixture(scope="module")
def planted():
    return measured(16)


def test_the_planted_tokens_are_counted(planted):
    counts = planted.images["counts"]
    number, artifacts = PLANTED.massive.sum(axis=1), PLANTED.artifact.sum(axis=1)
    for kind in ("massive by norm", "massive by attention", "massive by both"):
        np.testing.assert_array_equal(counts[kind], number)
    np.testing.assert_array_equal(counts["artifacts"], artifacts)
    np.testing.assert_array_equal(counts["attention sinks"], number + artifacts)
    assert [list(example["rank"]) for example in planted.examples] == PLANTED.order[:9].tolist()


@pytest.mark.slow
def test_an_analysis_holds_two_attention_matrices_more_than_a_plain_pass():
    """Of one block with all its heads, in any of its programs: in all blocks there are 8."""
    encoder = dict(width=24, depth=4, num_heads=12, mlp_dim=24)
    sizes = dict(image_size=112, patch_size=8, num_classes=0, encoder=encoder)
    vit = models.registry.FAMILIES["vit"]
    config = models.registry.override(vit.variants["vit-ti-16"], sizes)
    graphdef, state = nnx.split(models.registry.abstract_model(vit.model, config))
    images = jax.ShapeDtypeStruct((2, 112, 112, 3), np.float32)  # 197 tokens
    plan = Plan(block=2, first_block=1, blocks=(0, 1, 2, 3), massive="norm", max_sinks=8)
    plain = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images).tokens)
    tokens = jax.eval_shape(lambda *x: find_tokens(graphdef, *x, plan), state, images)

    def held(lowered):
        return lowered.compile().memory_analysis().temp_size_in_bytes

    matrix = 4 * 2 * 12 * 197**2
    limit = held(plain.lower(state, images)) + 2.1 * matrix  # a tenth for the tokens themselves
    assert held(find_tokens.lower(graphdef, state, images, plan)) < limit
    assert held(measure_batch.lower(graphdef, state, images, tokens, plan)) < limit
    assert held(largest_norms_unattended.lower(graphdef, state, images, plan)) < limit


@pytest.mark.slow
def test_images_are_streamed():
    """Of 160 images, each made when it is read, three batches of 8 are alive at most."""
    alive, most = weakref.WeakValueDictionary(), []

    class Images:
        def __len__(self):
            return 160

        def __getitem__(self, row):
            made = np.array(PLANTED.images[row % 20])
            alive[id(made)] = made
            most.append(len(alive))
            return made

    options = dict(batch_size=8, num_examples=1)
    found = measure(the_model(), Images(), lambda image: image, PLAN, **options)
    assert found.images["norms"].shape[0] == 160 and max(most) <= 3 * 8


def test_norms_are_those_of_the_patches_with_and_without_attention(planted):
    @nnx.jit
    def norms_of_patches(model):
        capture = models.Capture(norms=True)
        return model(PLANTED.images, capture=capture).captured.norms[:, :, 1:]

    norms = norms_of_patches(the_model())
    expected = np.stack([np.quantile(norms, q, axis=-1).T for q in (0.5, 0.99, 1)], axis=1)
    assert rel_max_error(planted.images["norms"], expected) < 1e-6
    silent = nnx.clone(the_model())
    for block in list(silent.encoder.blocks)[SUPPRESS:]:
        block.attention.out.kernel[...] = jnp.zeros_like(block.attention.out.kernel[...])
    assert rel_max_error(planted.images["unattended"], norms_of_patches(silent).max(-1).T) < 1e-6


def test_massive_and_artifact_tokens_suppress_each_other_where_planted(planted):
    there = PLANTED.artifact.any(axis=1)
    suppression = planted.images["suppression"]
    pair = [[MASSIVE, MASSIVE, ARTIFACT], [ITSELF, ARTIFACT, MASSIVE]]
    assert (suppression[SUPPRESS][there][:, *pair] < -1).all()
    assert np.isnan(suppression[SUPPRESS][~there][:, ARTIFACT]).all() and not there.all()
    assert (np.abs(suppression[SINK][there][:, *pair]) < 0.5).all()


def test_each_masked_sink_promotes_the_next(planted):
    for example in planted.examples:
        ranked = [list(example["rank"]).index(r) for r in range(1, example["rank"].max() + 1)]
        assert len(example["promoted"]) == 1 + len(ranked)
        for number, row in enumerate(example["promoted"]):
            np.testing.assert_array_equal(row[ranked[:number]], 0)  # they cannot be read
            if number < len(ranked):
                assert row[1:].argmax() + 1 == ranked[number] and row[ranked[number]] > 1
        np.testing.assert_allclose(example["promoted"][0], example["proxy"], rtol=1e-6)
        if ranked:
            assert example["received"].argmax() == ranked[0]
        assert example["received"].sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_size_of_batches_changes_nothing(planted):
    other = measured(8)
    assert len(planted.examples) == len(other.examples) == 9
    for one, two in zip(*(jax.tree.leaves(m[:2]) for m in (planted, other)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)


def test_the_summary_tells_what_is_there(planted):
    numbers = summarize(planted, PLAN, num_prefix=1)
    with_massive = int(PLANTED.massive.any(axis=1).sum())
    words = " ".join(in_words(numbers))
    assert f"in {with_massive} of 20 images" in words and "100 % are called so by both" in words
    assert "Caution" not in words and "max_sinks" not in words
    assert numbers["images_with_group"]["massive"] == with_massive
    np.testing.assert_allclose(np.sum(numbers["attention"]["2"], axis=1), 1, rtol=1e-5)


def random_groups(seed=0, batch=3, tokens=9, width=6, heads=2, dim=4):
    """Groups of random tokens after two in front, one image without massive tokens."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, (batch, tokens))
    kind[0, kind[0] == 1], kind[1, 2:5], kind[:, :2] = 0, (1, 1, 2), 0
    shapes = (batch, tokens, width), (batch, tokens, heads, dim), (heads, dim, width)
    x, value, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    query, key = rng.standard_normal((2, batch, tokens, heads, dim)).astype(np.float32)
    return kind, (query, key), (x, value, kernel)


def test_grouped_means_equal_a_loop_over_pairs():
    @jax.jit
    def measured(kind, query_key, states):
        member = membership(kind == 1, kind == 2, 2)
        grouped = grouped_attention(*query_key, member), grouped_suppression(*states, member)
        return member, attention_weights(*query_key), suppression_matrix(*states), *grouped

    found = map(np.asarray, measured(*random_groups()))
    member, weights, matrix, attention, suppression = found
    weights, matrix = weights.mean(axis=1), matrix.sum(axis=1)  # over heads
    assert np.isnan(attention[0, 2]).all() and np.isnan(suppression[0, 2]).all()
    sets = [[np.flatnonzero(column) for column in image.T] for image in np.asarray(member)]
    for image, groups in enumerate(sets):
        assert sorted(np.concatenate(groups)) == list(range(9))
        for a, queries in enumerate(groups):
            if not len(queries):
                continue
            own = np.mean([matrix[image, i, i] for i in queries])
            assert suppression[image, a, -1] == pytest.approx(own, abs=1e-5)
            for b, keys in enumerate(groups):
                given = np.mean([weights[image, i, keys].sum() for i in queries])
                assert attention[image, a, b] == pytest.approx(given, abs=1e-6)
                pairs = [matrix[image, i, j] for i in queries for j in keys if i != j]
                if pairs:
                    assert suppression[image, a, b] == pytest.approx(np.mean(pairs), abs=1e-5)
                else:
                    assert np.isnan(suppression[image, a, b])


def settings(model, **fields):
    config = importlib.import_module("configs.analyze").get_config()
    small = dict(model=str(model), batch_size=2, num_examples=2, max_sinks=4)
    config.update(small | fields)
    return config


HOSTILE = "<img src=x onerror='a'>&\"$x$.png"
BROKEN, SHOWN = "<script>\udcff\x1b.jpg", "<script>??.jpg"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The text and the folder of an analysis of files, by a model with registers, no text tower."""
    folder = tmp_path_factory.mktemp("analysis")
    models.save(tiny("dinov2"), folder / "model", companions=write_companions(folder))
    images = folder / "images"
    (images / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("c.png", HOSTILE, "deeper/b.JPG", "a.webp"):
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(images / name)
    (images / BROKEN).write_text("no image")
    (images / "notes.txt").write_text("no image either")
    text = analyze(settings(folder / "model", images=str(images)), folder / "run")
    return text, folder / "run"


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.shown = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.shown += data


def test_files_that_do_not_open_are_named_and_the_rest_is_analysed(finished):
    text, workdir = finished
    results = json.loads((workdir / "analysis.json").read_text())
    assert results["num_images"] == 4 and results["environment"]["jax"]
    (skipped,) = results["skipped"]
    assert skipped["file"].endswith(BROKEN) and SHOWN in text and "1 image did not open" in text
    assert results["groups"][:2] == ["class token", "registers"]
    for sentence in ("No massive tokens by norm", "Caution: the class token", "max_sinks = 4"):
        assert sentence in text
    for name in ("attention", "suppression"):
        assert np.array(results[name]["1"], float).shape == (5, 5 + (name == "suppression"))


def test_the_page_holds_every_figure_and_fetches_nothing(finished):
    _, workdir = finished
    source = (workdir / "index.html").read_text()
    page = Page(source)
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    files = {file.read_bytes() for file in workdir.glob("*.png")}
    assert len(pictures) == len(files) == 10
    for picture in pictures:
        assert len(picture["alt"]) > 20
        png = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"))
        assert png in files and Image.open(io.BytesIO(png)).width > 500
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}
    assert not [a for _, a in page.tags if {"href", "srcset", "onerror"} & set(a)]
    assert "url(" not in source and "@import" not in source
    assert HOSTILE in page.shown and SHOWN in page.shown  # as text, not as tags


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the browser Chromium")
def test_a_browser_shows_the_figures(finished, tmp_path):
    script = """<script>onload = () => document.title = [
        ...[...document.images].map(image => image.naturalWidth),
        document.documentElement.scrollWidth <= innerWidth].join()</script>"""
    page = tmp_path / "page.html"
    page.write_text((finished[1] / "index.html").read_text() + script)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=400,800"]
    command += ["--virtual-time-budget=5000", "--dump-dom", f"--user-data-dir={tmp_path}"]
    shown = subprocess.run(
        [*command, page.as_uri()], capture_output=True, text=True, timeout=60
    ).stdout
    *widths, fits = shown.partition("<title>")[2].partition("</title>")[0].split(",")
    assert len(widths) == 10 and all(int(width) > 500 for width in widths)
    assert fits == "true"  # no sideways scrolling of the page on a telephone


@pytest.mark.slow
def test_a_model_without_class_token():
    plan = Plan(block=1, first_block=0, blocks=(1,), massive="attention", max_sinks=2)
    images = list(random_images(height=32, width=48))
    options = dict(batch_size=2, num_examples=1)
    results = measure(tiny("siglip"), images, lambda image: image, plan, **options)
    numbers = summarize(results, plan, num_prefix=0)
    assert numbers["groups"] == ["massive", "artifact", "normal"]
    for example in results.examples:
        shown, clusters = np.zeros((32, 48, 3)), np.arange(24).reshape(4, 6) // 5
        example.update(shown=shown, landmarks=np.array([[4.0, 4.0]]), clusters=clusters)
    pictures = draw(numbers, results.examples, 0, 8)
    told = " ".join(in_words(numbers) + [picture.look_for for picture in pictures])
    page = render({}, numbers | {"summary": in_words(numbers)}, [])
    assert "average token" in told and "class token" not in told + page


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(block=2), "blocks 0 to 1, got 2"),
        (dict(block=0, first_block=1), "comes after"),
        (dict(blocks="0:3"), "blocks 0 to 1, got 2"),
        (dict(blocks="all"), "--config.blocks must be"),
        (dict(detector="norms"), "--config.detector must be"),
        (dict(num_landmarks=66), "more than the 65 tokens"),
        (dict(num_landmarks=1), "num_landmarks=1 leaves no cluster to the patches"),
        (dict(num_examples=0), "--config.num_examples must be at least 1"),
        (dict(images=()), "--config.images must be"),
        (dict(images="empty"), "the folder empty holds no images"),
        (dict(images=("broken.png", "broken.png")), "none of the 2 images opens; .*broken.png"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_anything_runs(
    small_model, tmp_path, monkeypatch, fields, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises((ValueError, OSError), match=message):
        analyze(settings(small_model, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_come_from_folders_and_files_in_order(tmp_path):
    for name in ("2.png", "10.JPEG", "sub/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [tmp_path / name for name in ("10.JPEG", "2.png", "sub/1.png")]
    assert image_files(str(tmp_path)) == found
    assert image_files((str(found[1]), str(tmp_path / "sub"))) == found[1:]
    assert image_files(tmp_path, limit=2) == [found[0], found[2]]
