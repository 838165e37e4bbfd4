import dataclasses
import importlib
import itertools
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import models
from evals.data import IGNORED, SegmentedImages, Split, segmented_digit_scenes
from evals.jobs.evaluate.report import evaluation_report
from evals.running.cache import Cache
from evals.running.devices import data_parallel
from evals.running.embed import Embedder
from evals.running.pretrained import open_backbone
from evals.tasks.segmentation import reading, segmentation, training
from evals.tasks.segmentation.features import PatchFeatures
from evals.tasks.segmentation.head import LinearHead
from evals.tasks.segmentation.settings import Settings
from evals.tasks.segmentation.task import logits_of, predictions
from evals.tasks.segmentation.training import trained_head
from fna_jax import FNAConfig
from tests.conftest import random_images, rel_max_error

SIZES = [(64, 64), (64, 150), (90, 70), (20, 31), (130, 65)]


@pytest.fixture(scope="module")
def backbone(small_model):
    return open_backbone(str(small_model))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Images of many sizes with label maps, in files, and some pixels ignored."""
    folder, rng = tmp_path_factory.mktemp("segmented"), np.random.default_rng(0)
    images, label_maps = [], []
    for number, size in enumerate(SIZES):
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        labels = rng.integers(0, 3, size, dtype=np.uint8)
        labels[:5] = IGNORED
        images.append(folder / f"{number}.png")
        label_maps.append(folder / f"{number}-labels.png")
        Image.fromarray(pixels).save(images[-1])
        Image.fromarray(labels).save(label_maps[-1])
    return SegmentedImages(images, label_maps, ["sky", "sea", "sand"])


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((32, 3)).astype(np.float32)
    mean, std = np.zeros(32, np.float32), np.ones(32, np.float32)
    return LinearHead(mean, std, kernel, np.zeros(3, np.float32))


def predicted(backbone, head, data, *, batch_size):
    run = logits_of(backbone, head, Settings())
    return [*predictions(run, backbone, data, Embedder(batch_size), Settings())]


def only(data, row):
    return SegmentedImages([data.images[row]], [data.label_maps[row]], data.class_names)


def test_windows_of_several_images_share_a_batch_without_mixing(backbone, head, files):
    together = predicted(backbone, head, files, batch_size=3)
    assert [image.row for image, _ in together] == [0, 1, 2, 3, 4]
    assert [len(image.windows) for image, _ in together] == [1, 3, 4, 2, 6]
    for image, labels in together:
        assert labels.shape == SIZES[image.row] == image.label_map.shape
        ((_, alone),) = predicted(backbone, head, only(files, image.row), batch_size=3)
        np.testing.assert_array_equal(labels, alone)


def test_an_image_of_one_window_is_what_the_model_sees_without_windows(backbone, head, files):
    ((image, labels),) = predicted(backbone, head, only(files, 0), batch_size=1)
    with Image.open(files.images[0]) as picture:
        np.testing.assert_array_equal(image.windows, [backbone.preprocess(picture)])
    features = data_parallel(PatchFeatures("last"), backbone.model)(image.windows)
    resized = jax.jit(lambda x: jax.image.resize(head(x), (1, 64, 64, 3), "linear"))(features)
    np.testing.assert_array_equal(labels, np.argmax(np.asarray(resized)[0], axis=-1))


def test_label_windows_are_labels_of_the_pixels_in_them(backbone):
    """Each pixel's label is its own brightness, before and after both are enlarged and cut."""
    levels = np.arange(40 * 60).reshape(40, 60).astype(np.uint8) % 200
    data = SegmentedImages([np.stack([levels] * 3, -1)], [levels], ["class"] * 200)
    preprocess = backbone.preprocess
    nearest = dataclasses.replace(preprocess, resample=Image.Resampling.NEAREST)
    sliding = Settings().sliding(backbone)
    ((image, _),) = reading.over_windows(lambda x, rng: x, data, [0], nearest, sliding, Embedder(2))
    shown = (image.windows[..., 0] * preprocess.std[0] + preprocess.mean[0]) * 255
    assert len(image.windows) > 1
    np.testing.assert_array_equal(reading.label_windows(image, sliding), np.rint(shown))


def test_an_image_or_a_label_map_that_does_not_open_is_left_out(backbone, capsys):
    images, label_maps = (
        [*np.zeros((200, 64, 64, 3), np.uint8)],
        [*np.zeros((200, 64, 64), np.uint8)],
    )
    images[3], label_maps[5] = "gone.jpg", "gone.png"
    sliding = Settings().sliding(backbone)

    def rows():
        data = SegmentedImages(images, label_maps, ["nothing"])
        args = data, range(200), backbone.preprocess, sliding, Embedder(16)
        return [image.row for image, _ in reading.over_windows(lambda x, rng: x, *args)]

    assert rows() == sorted({*range(200)} - {3, 5})
    assert "gone.jpg" in (said := capsys.readouterr().err) and "gone.png" in said
    images[7] = "gone.jpg"
    with pytest.raises(ValueError, match="3 of 200 images"):
        rows()


def test_features_are_the_normalised_patches_of_the_last_blocks():
    encoder = dict(width=16, depth=5, num_heads=2, mlp_dim=16)
    sizes = dict(image_size=32, patch_size=4, num_classes=0, encoder=encoder)
    vit = models.create("vit-ti-16", rngs=nnx.Rngs(0), **sizes)
    images = random_images(batch=3)
    states = [np.asarray(x)[:, 1:] for x in jax.jit(vit.hidden_states)(images)[-4:]]
    expected = [(x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) for x in states]
    for layers, blocks in {"last": expected[-1:], "last four": expected}.items():
        features = data_parallel(PatchFeatures(layers), vit)(images)
        patches = np.concatenate(blocks, axis=-1).reshape(3, 8, 8, -1)
        assert rel_max_error(features, patches) < 1e-5


def test_fna_with_all_tokens_as_landmarks_segments_as_exact_attention(backbone, head):
    fna = backbone.with_attention(FNAConfig("0:2", 65, inverse_steps=14))
    windows = np.random.default_rng(0).standard_normal((3, 64, 64, 3)).astype(np.float32)
    exact, approximate = (logits_of(view, head, Settings())(windows) for view in (backbone, fna))
    assert rel_max_error(approximate, exact) < 1e-4
    few = backbone.with_attention(FNAConfig("0:2", 4))
    assert rel_max_error(logits_of(few, head, Settings())(windows), exact) > 0.1


def test_features_that_do_not_fit_into_memory_are_computed_anew(backbone, monkeypatch):
    data = segmented_digit_scenes(4, 1).train
    take = lambda head, minibatches, **_: [*itertools.islice(minibatches, 4)]
    monkeypatch.setattr(training, "train_head", take)

    def epochs():
        """Two epochs of two minibatches of 2, each window's features beside its labels."""
        batches = trained_head(backbone, data, Embedder(2), Settings())
        seen = {labels.tobytes(): x for xs, maps in batches for x, labels in zip(xs, maps)}
        of_epoch = [
            np.concatenate([maps for _, maps in pair]) for pair in (batches[:2], batches[2:])
        ]
        assert all(len(np.unique(labels, axis=0)) == 4 for labels in of_epoch)
        assert not np.array_equal(*of_epoch)
        return seen

    kept = epochs()
    monkeypatch.setattr(training, "_KEPT_BYTES", 0)
    anew = epochs()
    for labels in kept.keys() & anew.keys():
        assert rel_max_error(anew[labels], kept[labels]) < 1e-6
    assert {scene.tobytes() for scene in data.label_maps} >= kept.keys() | anew.keys()


def test_a_head_is_trained_once_for_the_same_data_and_settings(backbone, tmp_path, monkeypatch):
    data, settings = segmented_digit_scenes(2, 1).train, Settings(steps=2)
    embedder = Embedder(2, cache=Cache(tmp_path))
    head = trained_head(backbone, data, embedder, settings)

    def trained_again(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(training, "train_head", trained_again)
    view = backbone.with_attention(FNAConfig("0:2", 4))  # an arm, with a folder opened anew
    found = trained_head(view, data, Embedder(2, cache=Cache(tmp_path)), settings)
    for one, other in zip(jax.tree.leaves(head), jax.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(one, other)
    other_labels = dataclasses.replace(data, label_maps=data.label_maps[::-1].copy())
    for changed in [(data, Settings(steps=3)), (other_labels, settings)]:
        with pytest.raises(InterruptedError):
            trained_head(view, changed[0], embedder, changed[1])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"layers": "last two"}, "no 'last two'; did you mean 'last"),
        ({"layers": "last four"}, "the model has 2 blocks"),
        ({"window": 60}, "multiple of the patch size 8"),
        ({"short_side": 32}, "less than the window's side 64"),
        ({"stride": 1.5}, "stride is out of range: 1.5"),
        ({"steps": 0}, "steps is out of range: 0"),
        ({"rate": float("nan")}, "rate is out of range: nan"),
    ],
)
def test_settings_that_the_model_cannot_follow_are_refused(backbone, files, settings, message):
    with pytest.raises(ValueError, match=message):
        segmentation(backbone, Split(files, files), Embedder(2), **settings)


def test_the_record_counts_all_pixels_that_have_a_class(backbone, files):
    settings = Settings(steps=2)
    record = segmentation(backbone, Split(files, files), Embedder(3), steps=2)
    head = trained_head(backbone, files, Embedder(3), settings)
    found = [
        *predictions(logits_of(backbone, head, settings), backbone, files, Embedder(3), settings)
    ]
    truth, labels = (
        np.concatenate([x.ravel() for x in maps])
        for maps in zip(*((image.label_map, predicted) for image, predicted in found))
    )
    right = (truth == labels)[truth != IGNORED]
    assert record["num_images"] == 5
    assert record["pixel_accuracy"] == pytest.approx(100 * right.mean())
    assert list(record["iou"]) == files.class_names
    assert record["miou"] == pytest.approx(np.mean([*record["iou"].values()]))


def test_label_maps_without_any_class_are_refused(backbone, files):
    nothing = [np.full(size, IGNORED, np.uint8) for size in SIZES]
    data = dataclasses.replace(files, label_maps=nothing)
    with pytest.raises(ValueError, match="no pixel"):
        segmentation(backbone, Split(files, data), Embedder(3), steps=2)


@pytest.mark.slow
def test_a_run_draws_and_tabulates_exact_attention_beside_fna(small_model, tmp_path):
    config = importlib.import_module("configs.segment").get_config()
    config.model, config.batch_size, config.num_fidelity_images = str(small_model), 4, 2
    config.num_train_scenes, config.num_segmented_scenes, config.segmentation.steps = 4, 6, 2
    config.fna.num_landmarks = (4,)
    text = evaluation_report(config, tmp_path)
    points = json.loads((tmp_path / "results.json").read_text())["points"]
    assert [point["arm"] for point in points] == ["exact", "fps-4"]
    for point in points:
        assert point["num_images"] == 6 and list(point["iou"])[:2] == ["background", "zero"]
        row = f"| {point['miou']:.1f} | {point['pixel_accuracy']:.1f} |"
        assert row in text
    with Image.open(tmp_path / "segmentation.png") as picture:
        assert picture.width > 600
