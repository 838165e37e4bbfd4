"""Neighbours and linear probe against scikit-learn's; what they are trained on; own heads."""

import dataclasses
import types

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import models
from configs import classify
from evals.data import LabelledImages, Split, image_folder, read_image
from evals.jobs.arms import Arm
from evals.running.embed import Embedded, Embedder, unit
from evals.running.pretrained import Backbone, open_backbone
from evals.tasks import neighbours
from evals.tasks.classifier import classifier
from evals.tasks.linear_probe import fit, linear_probe
from evals.tasks.neighbours import knn, nearest, votes
from evals.tasks.table import jobs_of
from fna_jax import FNAConfig
from models import clip
from models.registry import abstract_model
from tests.conftest import rel_max_error
from training.companions import write_companions


@pytest.mark.parametrize("blocks", [(5, 9), (2048, 4096)])
def test_nearest_are_those_of_a_stable_sort(blocks, monkeypatch):
    for name, size in zip(("_QUERIES", "_GALLERY"), blocks):
        monkeypatch.setattr(neighbours, name, size)
    rng = np.random.default_rng(0)  # small integers: many products are equal, none is rounded
    queries, gallery = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (10, 17))
    products = queries @ gallery.T
    rows = np.argsort(-products, axis=1, kind="stable")[:, :12]
    found = nearest(queries, gallery, 12)
    np.testing.assert_array_equal(found[1], rows)
    np.testing.assert_array_equal(found[0], np.take_along_axis(products, rows, axis=1))


@pytest.mark.parametrize("k", [1, 20, 60])
def test_votes_equal_scikit_learns(k):
    rng = np.random.default_rng(0)
    gallery, queries = (unit(rng.normal(size=(n, 4)).astype(np.float32)) for n in (60, 30))
    labels = rng.integers(0, 5, size=60)
    peer = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    expected = peer.fit(gallery, labels).predict_proba(queries)
    cosines, rows = nearest(queries, gallery, k)
    actual = votes(cosines, labels[rows], 5)
    assert rel_max_error(actual, expected) < 1e-5  # measured 1e-6: a cosine's rounding / 0.07


def overlapping_classes(seed=0, num_images=5500, width=8, num_classes=4):
    """Features of very different scales, and classes that no plane separates.

    The last feature is constant but for rounding.
    """
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_images, width))
    logits = 2 * features @ rng.normal(size=(width, num_classes))
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    features = (features + rng.normal(size=width)) * 10 ** rng.uniform(-2, 2, size=width)
    constant = 0.1 + 3e-8 * rng.normal(size=(num_images, 1))
    return np.concatenate([features, constant], axis=1).astype(np.float32), labels


def handwriting():
    data = load_digits()
    order = np.random.default_rng(1).permutation(len(data.target))
    return data.data[order].astype(np.float32), data.target[order]


@pytest.mark.slow
@pytest.mark.parametrize(
    "data, num_train, strength",
    [
        (overlapping_classes, 1500, 1e6),
        pytest.param(handwriting, 1000, 1.0, marks=pytest.mark.slow),  # trains for ten seconds
    ],
)
def test_the_probe_finds_the_optimum_of_scikit_learn(data, num_train, strength):
    features, labels = data()
    train, test = np.split(np.arange(len(labels)), [num_train])
    logits, _ = fit(features[train], labels[train], labels.max() + 1)
    mean, deviation = features[train].mean(axis=0), features[train].std(axis=0)
    standard = (features - mean) / np.where(deviation > 0, deviation, 1)
    peer = LogisticRegression(C=strength, max_iter=5000).fit(standard[train], labels[train])
    expected = 100 * peer.score(standard[test], labels[test])
    actual = 100 * np.mean(logits(features[test]).argmax(axis=1) == labels[test])
    assert abs(actual - expected) < 0.5 and actual > 70
    other = features + 1e-4 * (deviation < 1e-6)  # as FNA's may differ from exact attention's
    assert rel_max_error(logits(other), logits(features)) < 1e-2


def test_a_probe_needs_two_images():
    with pytest.raises(ValueError, match="two images"):
        fit(np.ones((1, 3), np.float32), np.zeros(1, int), 2)


def easy_images(count):
    """Images of one brightness per class, of three, which are not in order."""
    labels = np.arange(count) ** 2 % 7 % 3
    noise = np.random.default_rng(count).integers(0, 60, (count, 32, 32, 3))
    images = (noise + 95 * labels[:, None, None, None]).astype(np.uint8)
    return LabelledImages(images, labels, ("dark", "grey", "light"), ("a {} image",))


class BrightnessEmbedder:
    """Gives each image's brightness, but the fourth does not open; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def images(self, backbone, images, *, output, rng=None):
        self.asked.append((backbone, output, rng))
        rows = np.delete(np.arange(len(images)), 3)
        angle = np.mean(images, axis=(1, 2, 3))[rows] / 255
        features = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        times = dict(compile_seconds=0.0, images_per_second=1.0)
        return Embedded(features, rows, num_unreadable=1, **times)


@pytest.mark.parametrize("task", [knn, linear_probe])
def test_heads_are_trained_on_exact_features_of_the_images_that_open(task, monkeypatch):
    monkeypatch.setattr("evals.tasks.linear_probe._FEWEST_STEPS", 500)
    backbone, embedder = types.SimpleNamespace(exact=lambda: "exact"), BrightnessEmbedder()
    record = task(backbone, Split(easy_images(60), easy_images(15)), embedder, rng="key")
    assert embedder.asked == [("exact", "pooled", None), (backbone, "pooled", "key")]
    assert record["num_images"] == 14
    assert record["top1"] == 100
    if task is knn:  # all 59 of the gallery vote where k is larger
        assert record["k"] == 20 and [*record["top1_of_k"]] == ["10", "20", "59"]


def with_head(name, num_classes):
    """A small model of images of 32 pixels with a head for so many classes, as a backbone."""
    encoder = {"width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    settings = {"image_size": 32, "patch_size": 8, "num_classes": num_classes, "encoder": encoder}
    model = models.create(name, rngs=nnx.Rngs(0), **settings)
    return Backbone("small", model, lambda image: np.asarray(image, np.float32) / 255)


def test_the_own_head_classifies_with_fna():
    data = easy_images(9)
    view = with_head("vit-b-16", 3).with_attention(FNAConfig((0,), 2))
    logits = Embedder(4).images(view, data.images, output="logits").embeddings
    for shift, accuracy in ((0, 100), (1, 0)):
        labels = (logits.argmax(axis=1) + shift) % 3
        record = classifier(view, dataclasses.replace(data, labels=labels), Embedder(4))
        assert record["top1"] == accuracy


class OutputsOfPixels:
    """Instead of an embedder: the logits of a model that sees in an image which output it is."""

    def images(self, backbone, images, *, output, rng=None):
        assert output == "logits"
        seen = [read_image(image, np.asarray)[0, 0, 0] for image in images]
        logits = np.eye(backbone.model.config.num_classes, dtype=np.float32)[seen]
        return Embedded(logits, np.arange(len(images)), 0.0, 1.0, num_unreadable=0)


ANIMALS = ["zebra", "cat", "ant", "bee", "cow", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay"]


@pytest.mark.parametrize(
    "folders, labels, lines",
    [
        ([str(k) for k in range(12)], None, None),
        ([f"{k:03}" for k in range(12)], None, ANIMALS),
        (ANIMALS, ANIMALS, None),
        ([str(11 - k) for k in range(12)], ANIMALS, ANIMALS[::-1]),
    ],
)
def test_a_head_that_is_right_about_folders_gets_all_right(tmp_path, folders, labels, lines):
    for output, name in enumerate(folders):
        (tmp_path / "data" / name).mkdir(parents=True)
        pixel = np.full((1, 1, 3), output, np.uint8)
        Image.fromarray(pixel).save(tmp_path / "data" / name / "1.png")
    names = None if lines is None else tmp_path / "names.txt"
    if names is not None:
        names.write_text("\n".join(lines))
    data = image_folder(tmp_path / "data", templates=("{}",), class_names=names)
    config = types.SimpleNamespace(num_classes=12)
    model = types.SimpleNamespace(config=config, classify=None)
    record = classifier(Backbone("m", model, None, labels=labels), data, OutputsOfPixels())
    assert record["top1"] == 100 and list(record["per_class"]) == (labels or lines or folders)


def test_a_backbone_has_the_labels_beside_its_weights(tmp_path):
    (tmp_path / "labels.json").write_text('["dark", "grey", "light"]')
    companions = [*write_companions(tmp_path), tmp_path / "labels.json"]
    models.save(with_head("vit-b-16", 3).model, tmp_path / "model", companions=companions)
    assert open_backbone(tmp_path / "model").labels == ("dark", "grey", "light")
    (tmp_path / "model" / "labels.json").write_text('["dark", 3]')
    with pytest.raises(ValueError, match=r"labels\.json' must hold a list of names"):
        open_backbone(tmp_path / "model")


@pytest.mark.parametrize("num_classes, message", [(0, "no classifier"), (4, "4 classes.*have 3")])
def test_a_head_that_does_not_fit_the_data_is_refused(num_classes, message):
    with pytest.raises(ValueError, match=message):
        classifier(with_head("vit-b-16", num_classes), easy_images(9), Embedder(4))


def test_a_model_without_classifier_is_refused():
    model = abstract_model(clip.CLIP, clip.VARIANTS["clip-vit-b-32"])
    with pytest.raises(ValueError, match="clip, which has no classifier"):
        classifier(Backbone("small", model, None), easy_images(9), Embedder(4))


def test_a_task_without_data_is_left_out_aloud(capsys):
    config, data = classify.get_config(), {"labelled": easy_images(9), "labelled split": None}
    jobs = jobs_of([Arm()], ("knn", "classifier"), None, data, None, config)
    assert [job[:2] for job in jobs] == [("exact", "classifier")]
    assert "knn is left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="train_data"):
        jobs_of([Arm()], ("knn", "linear_probe"), None, data, None, config)
