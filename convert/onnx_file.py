"""What an ONNX file holds: weights under the names that PyTorch gave them, and what its graph says.

An exporter keeps the names of parameters, but transposes the weights of linear layers, and cuts
learned positions in two; what it made so has names without meaning. The graph tells them apart.
"""

import collections
import functools
import pathlib

import numpy as np

from convert.errors import ConversionError, one_line, show
from convert.tensors import Tensor

_CLASS_TOKEN = "embeddings.cls_token"
_POSITIONS = "embeddings.position_embeddings"
_FLOATS = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16"}
_SHAPES_AND_INDICES = ("INT64", "INT32", "BOOL")  # of the graph, not weights
_REARRANGING = ("Cast", "Identity", "Reshape", "Resize", "Transpose")


class Graph:
    """The nodes of an ONNX file and the constants that they use.

    Attributes:
      nodes: in order.
      weights: a Tensor for each of the state dict, without what stands before all names of the
        backbone.
      position_resize: the node that resizes the learned positions; None where there is none.
    """

    def __init__(self, onnx, file, proto):
        self.nodes = list(proto.node)
        self._onnx, self._file = onnx, file
        self._initializers = {tensor.name: tensor for tensor in proto.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}
        self._users = collections.defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._users[name].append(node)
        names = (n for n in self._initializers if n.endswith(_CLASS_TOKEN))
        self._prefix = next(names, _CLASS_TOKEN).removesuffix(_CLASS_TOKEN)
        self.position_resize = None
        self.weights = self._weights()

    def heads(self, layer, width) -> int | None:
        """Into how many heads the output of the linear layer of that name is cut, if that is said.

        `[B, N, C]`, C the width, is reshaped to `[B, N, H, D]`: H or D is a number.
        """
        for node in self._users[f"{self._prefix}{layer}.bias"]:
            for user in self._users[node.output[0]]:
                shape = self._numbers(user.input[1]) if user.op_type == "Reshape" else ()
                if len(shape) == 4 and max(shape[2:]) > 0:
                    return shape[2] if shape[2] > 0 else width // shape[3]
        return None

    def epsilon(self, norm) -> float | None:
        """That of the layer norm of that name, one node or written out, if it is found."""
        for node in self._users[f"{self._prefix}{norm}.weight"]:
            if node.op_type == "LayerNormalization":
                return _short(self.attributes(node).get("epsilon", 1e-5))
            # weight · ((x − mean) / √(variance + epsilon))
            for root in self._inputs(node, "Div", "Sqrt", "Add"):
                constants = [self._constant(name) for name in root.input]
                constants = [x for x in constants if x is not None and x.size == 1]
                if constants:
                    return _short(constants[0].item())
        return None

    def attributes(self, node) -> dict:
        """The attributes of a node by name."""
        return {x.name: self._onnx.helper.get_attribute_value(x) for x in node.attribute}

    def _inputs(self, node, *op_types):
        """The nodes reached from one over inputs of these kinds, one after another."""
        nodes = [node]
        for op_type in op_types:
            made_by = [self._makers.get(name) for node in nodes for name in node.input]
            nodes = [node for node in made_by if node is not None and node.op_type == op_type]
        return nodes

    def _constant(self, name):
        """The array of a constant; None for what is computed."""
        tensor, node = self._initializers.get(name), self._makers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            tensor = self.attributes(node).get("value")
        try:
            return None if tensor is None else self._onnx.numpy_helper.to_array(tensor)
        except (TypeError, ValueError):
            return None

    def _numbers(self, name):
        """A shape whose numbers are constants, or put together of some; −1 for those computed."""
        if (constant := self._constant(name)) is not None:
            return [int(x) for x in constant.ravel()]
        node = self._makers.get(name)
        if node is None or node.op_type != "Concat":
            return [-1]
        return [number for part in node.input for number in self._numbers(part)]

    def _weights(self):
        """All initialisers of floats that have axes, each under its name in the state dict."""
        linear = dict.fromkeys(found for node in self.nodes if (found := self._linear(node)))
        parts = self._positions()
        used = {source for _, source in linear} | set(parts)
        others = [
            name
            for name, tensor in self._initializers.items()
            if name not in used and tensor.dims and self._dtype(tensor) not in _SHAPES_AND_INDICES
        ]
        found = [(name, self._weight(source, True)) for name, source in linear]
        found += [(name, self._weight(name, False)) for name in others]
        found += [(f"{self._prefix}{_POSITIONS}", self._joined(parts))] if parts else []
        names = [name.removeprefix(self._prefix) for name, _ in found]
        if twice := [name for name, count in collections.Counter(names).items() if count > 1]:
            raise ConversionError(
                f"{show(str(self._file))} holds more than one tensor that could be "
                f"{', '.join(map(show, twice[:3]))}"
            )
        return dict(zip(names, (weight for _, weight in found), strict=True))

    def _linear(self, node):
        """The name of the weight of a linear layer, whose bias this node adds, and its source."""
        if node.op_type != "Add":
            return None
        biases = [n for n in node.input if n in self._initializers and n.endswith(".bias")]
        weights = [
            name
            for product in self._inputs(node, "MatMul")
            for name in product.input[1:]
            if name in self._initializers
        ]
        if len(biases) != 1 or len(weights) != 1:
            return None
        return f"{biases[0].removesuffix('bias')}weight", weights[0]

    def _positions(self):
        """The names of the two parts of learned positions: the class token's, and the patches'."""
        for node in self.nodes:
            if node.op_type != "Concat" or len(node.input) != 2:
                continue
            first, second = (self._rearranged(name) for name in node.input)
            shapes = [list(self._initializers[n].dims) if n else [] for n in (first, second)]
            if shapes[0][:2] == [1, 1] and len(shapes[0]) == len(shapes[1]) == 3:
                return first, second
        return ()

    def _rearranged(self, name):
        """The initialiser that was rearranged to this; None for what is computed otherwise."""
        while (node := self._makers.get(name)) is not None and node.op_type in _REARRANGING:
            if node.op_type == "Resize":
                self.position_resize = node
            name = node.input[0]
        return name if name in self._initializers else None

    def _weight(self, source, transposed):
        tensor = self._initializers[source]
        self._check(tensor)
        shape = tuple(tensor.dims)
        dtype = _FLOATS.get(self._dtype(tensor), self._dtype(tensor))
        read = functools.partial(self._onnx.numpy_helper.to_array, tensor)
        if transposed:
            return Tensor(shape[::-1], dtype, lambda: read().T)
        return Tensor(shape, dtype, read)

    def _joined(self, parts):
        first, second = (self._weight(name, False) for name in parts)
        if first.shape[2] != second.shape[2] or first.dtype != second.dtype:
            raise ConversionError(
                f"{show(str(self._file))}: the positions of class token and patches are "
                f"{list(first.shape)} and {list(second.shape)}, {first.dtype} and {second.dtype}"
            )
        shape = (1, 1 + second.shape[1], second.shape[2])
        read = lambda: np.concatenate([first.read(), second.read()], axis=1)
        return Tensor(shape, first.dtype, read)

    def _dtype(self, tensor):
        """ONNX's word; a number for what it has no word for."""
        known = self._onnx.TensorProto.DataType
        return known.Name(tensor.data_type) if tensor.data_type in known.values() else "unknown"

    def _check(self, tensor):
        """Raises ConversionError unless there are as many numbers as the shape says."""
        try:
            fits = self._onnx.numpy_helper.to_array(tensor).shape == tuple(tensor.dims)
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ConversionError(
                f"{show(str(self._file))} is damaged: {show(tensor.name)} does not hold "
                f"{list(tensor.dims)} numbers; get it anew"
            )


def open_graph(file: pathlib.Path) -> Graph:
    """The graph of an ONNX file.

    Raises:
      ConversionError: a file that is damaged or no ONNX, weights in another file, or no `onnx`.
    """
    onnx = import_onnx(show(str(file)))
    try:
        model = onnx.load(file, load_external_data=False)
        _check_external(file, model.graph)
        onnx.checker.check_model(model)  # nodes in order, their inputs, attributes
    except ConversionError:
        raise
    except Exception as error:  # of the file system, of protobuf, of the checker: many types
        raise ConversionError(
            f"{show(str(file))} is damaged, or not ONNX ({show(one_line(error))}); get it anew"
        ) from None
    return Graph(onnx, file, model.graph)


def import_onnx(what):
    """The package, to read `what`; raises ConversionError with the remedy."""
    try:
        import onnx
    except ImportError:
        raise ConversionError(
            f"{what} is read with the package onnx: pip install -r requirements-pretrained.txt"
        ) from None
    return onnx


def _check_external(file, graph):
    """Raises ConversionError unless all numbers are in this file."""
    for tensor in graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            raise ConversionError(
                f"{show(str(file))} keeps {show(tensor.name)} in another file (external data), "
                "which is not read: save all in one, with onnx.save(onnx.load(FILE), NEW)"
            )


def _short(value):
    """The shortest number that is the same in float32: 1e-06 rather than 9.99999997e-07."""
    return float(str(np.float32(value)))
