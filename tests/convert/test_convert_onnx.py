"""ONNX files as PyTorch exports them, of DINOv2 in transformers, alone and in larger models."""

import sys
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

import convert
from convert.originals import prepare_libraries

SIZE, WIDTH, HEADS = (42, 28), 16, 2  # of images in pixels; the model's positions are of 28 × 28


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A tiny DINOv2 of transformers as `part` of a model, exported by name; gives file and model.

    All parameters are random: the exporter merges equal ones.
    """
    onnx = pytest.importorskip("onnx")
    torch = pytest.importorskip("torch")
    prepare_libraries()
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("onnx")

    class Larger(torch.nn.Module):
        def __init__(self, part, model):
            super().__init__()
            self.add_module(part, model)
            self.head = torch.nn.Linear(WIDTH, 3)
            self.forward = lambda pixels: self.head(model(pixels).last_hidden_state)

    def export(name, part="", **changes):
        file = folder / f"{name}.onnx"
        torch.manual_seed(0)
        settings = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS)
        settings |= dict(image_size=28, patch_size=7, layer_norm_eps=1e-5) | changes
        model = transformers.Dinov2Model(transformers.Dinov2Config(**settings)).eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        whole = Larger(part, model) if part else model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing, and of the exporter's age
            options = dict(dynamo=False, external_data=False, opset_version=18)
            torch.onnx.export(whole, (torch.zeros(1, 3, *SIZE),), file, **options)
        return file, model

    export.onnx = onnx
    return export


@pytest.fixture
def changed(exported, tmp_path):
    """The exported file with its model changed by a function; gives the new one."""

    def change(function, **options):
        file, _ = exported("plain")
        model = exported.onnx.load(file)
        function(model)
        exported.onnx.save(model, tmp_path / "changed.onnx", **options)
        return tmp_path / "changed.onnx"

    return change


@pytest.mark.reference
@pytest.mark.parametrize(
    "changes",
    [{}, {"hidden_act": "gelu_pytorch_tanh"}],
    ids=["gelu", "tanh"],
)
def test_an_export_computes_what_transformers_does(exported, changes):
    import torch

    file, original = exported(f"case{len(changes)}", **changes)
    with pytest.warns(UserWarning, match="patch grid 4,4: guessed"):
        model = convert.load_pretrained(file)
    assert model.config.encoder.num_heads == HEADS
    assert model.config.encoder.layer_norm_epsilon == 1e-5
    images = np.random.default_rng(0).standard_normal((2, *SIZE, 3), np.float32)
    with torch.no_grad():
        expected = original(torch.from_numpy(images.transpose(0, 3, 1, 2))).last_hidden_state
    error = jnp.max(jnp.abs(model(images).tokens - expected.numpy()))
    assert error < 1e-5 * float(expected.abs().max())


@pytest.mark.reference
def test_what_stands_on_the_backbone_is_refused_by_name(exported, refused):
    file, _ = exported("larger", part="trunk")
    message = refused(file)
    assert "head.weight' is unknown" in message and "missing" not in message


@pytest.mark.reference
def test_float16_is_read(changed, tmp_path):
    from onnx import numpy_helper

    def halve(model):
        for tensor in model.graph.initializer:
            if tensor.data_type == tensor.FLOAT:
                half = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))

    with pytest.warns(UserWarning, match="guessed"):
        assert convert.load_pretrained(changed(halve)).config.dtype == "float32"


def rename_a_bias(model):
    (tensor,) = (t for t in model.graph.initializer if t.name.endswith("layer.1.norm2.bias"))
    tensor.name = "norm"
    for node in model.graph.node:
        node.input[:] = ["norm" if n.endswith("layer.1.norm2.bias") else n for n in node.input]


def other_epsilon(model):
    for node in model.graph.node:
        if node.op_type == "LayerNormalization":
            node.attribute[-1].f = 0.5
            return
    raise AssertionError("no layer norm")


def no_activation(model):
    for node in model.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Sin"


def other_resize(model):
    (node,) = (node for node in model.graph.node if node.op_type == "Resize")
    for attribute in node.attribute:
        if attribute.name == "mode":
            attribute.s = b"linear"


def shorter(model):
    tensor = model.graph.initializer[3]
    tensor.raw_data = tensor.raw_data[:-4]


def out_of_order(model):
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])


def another_tower(model):
    model.graph.initializer.append(model.graph.initializer[0])
    model.graph.initializer[-1].name = "teacher.embeddings.cls_token"


def the_same_name_twice(model):
    weight = model.graph.initializer[3]
    model.graph.initializer.append(weight)
    model.graph.initializer[-1].name = "encoder.layer.0.mlp.fc1.weight"


def of_another_model(model):
    for tensor in model.graph.initializer:
        new = tensor.name.replace("layer_scale1", "gamma")
        for node in model.graph.node:
            node.input[:] = [new if name == tensor.name else name for name in node.input]
        tensor.name = new


@pytest.mark.reference
@pytest.mark.parametrize(
    "change, part",
    [
        (rename_a_bias, "layer.1.norm2.bias is missing; 'norm' is unknown"),
        (other_epsilon, "one epsilon in all layer norms, got [0.5, 1e-05]"),
        (no_activation, "must have one activation"),
        (other_resize, "resizes positions otherwise than transformers"),
        (shorter, "is damaged"),
        (another_tower, "'teacher.embeddings.cls_token' is unknown"),
        (
            the_same_name_twice,
            "more than one tensor that could be 'encoder.layer.0.mlp.fc1.weight'",
        ),
        (out_of_order, "is damaged, or not ONNX"),
        (of_another_model, "none fits: dinov2 (onnx)"),
    ],
)
def test_another_graph_is_refused(changed, refused, change, part):
    assert part in refused(changed(change))


@pytest.mark.reference
def test_weights_in_another_file_are_refused(changed, refused):
    external = dict(save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert "in another file (external data)" in refused(changed(lambda model: None, **external))


@pytest.mark.reference
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_half_a_file_is_refused(exported, refused, tmp_path, share):
    content = exported("plain")[0].read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[: int(share * len(content))])
    assert "is damaged, or not ONNX" in refused(tmp_path / "half.onnx")


@pytest.mark.reference
def test_heads_that_the_graph_tells_are_not_given(exported, refused):
    assert "nothing leaves it open" in refused(exported("plain")[0], "--heads", "4")


def test_without_onnx_the_remedy_is_told(monkeypatch, refused, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "pip install -r requirements-pretrained.txt" in refused(tmp_path / "model.onnx")
