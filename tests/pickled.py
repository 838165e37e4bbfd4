"""Files as `torch.save` writes them, made without torch, and pickles that nobody should run."""

import dataclasses
import pickle
import struct
import zipfile

import numpy as np
import pytest

from convert.errors import ConversionError
from convert.files import open_tensors

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
    "int64": "LongStorage",
}


@dataclasses.dataclass(frozen=True)
class Name:
    """An object that a pickle asks for by its module and name."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """What calling a name gives, with attributes and items set afterwards."""

    called: Name
    args: tuple = ()
    attributes: dict | None = None
    items: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a pickle says of an object that lies elsewhere."""

    words: tuple


def namespace(**values):
    """An `argparse.Namespace`, as scripts save their arguments."""
    return Call(Name("argparse", "Namespace"), (), values)


def numpy_scalar(value):
    """A `numpy.float64`, as scripts save a metric."""
    dtype = Call(Name("numpy", "dtype"), ("f8", False, True), (3, "<", None, None, None, -1, -1, 0))
    latin = np.float64(value).tobytes().decode("latin1")
    content = Call(Name("_codecs", "encode"), (latin, "latin1"))
    return Call(Name("numpy._core.multiarray", "scalar"), (dtype, content))


def dumps(value) -> bytes:
    """A pickle of protocol 2, of plain values and of those above."""
    return b"\x80\x02" + _pickled(value) + b"."


def write_archive(value, file, *, compression=zipfile.ZIP_STORED, order="little"):
    """A zip archive, as since torch 1.6."""
    storages = []
    content = dumps(_with_references(value, storages))
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", order)
        for key, array in enumerate(storages):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return file


def write_legacy(value, file):
    """Pickles with the numbers behind them, as before torch 1.6."""
    storages = []
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    content = _with_references(value, storages, (None,))
    keys = [str(key) for key in range(len(storages))]
    with open(file, "wb") as stream:
        for part in (_MAGIC, 1001, machine, content, keys):
            stream.write(dumps(part))
        for array in storages:
            stream.write(struct.pack("<q", array.size) + array.tobytes())
    return file


def tensor(array, storage=None, shape=None, strides=None, offset=0):
    """What torch calls to make a tensor of a storage, by default one of an array's own."""
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    hooks = Call(Name("collections", "OrderedDict"))
    args = (array if storage is None else storage, offset, tuple(shape), strides, False, hooks)
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), args)


def refusal(file):
    """The one line in which a file is refused."""
    with pytest.raises(ConversionError) as error:
        for tensor in open_tensors(file).values():
            tensor.read()
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000
    return message


def _with_references(value, storages, rest=()):
    """`value` with a reference in place of every array, which goes into `storages`."""

    def replace(x):
        if isinstance(x, np.ndarray):
            return replace(tensor(x, reference(x)))
        if isinstance(x, Call):
            args = tuple(reference(a) if isinstance(a, np.ndarray) else replace(a) for a in x.args)
            return dataclasses.replace(x, args=args, attributes=replace(x.attributes))
        if isinstance(x, dict):
            return {name: replace(item) for name, item in x.items()}
        if isinstance(x, list | tuple):
            return type(x)(replace(item) for item in x)
        return x

    def reference(array):
        key = next((i for i, other in enumerate(storages) if other is array), len(storages))
        storages[key:] = storages[key:] or [array]
        kind = Name("torch", _STORAGES[array.dtype.name])
        return Reference(("storage", kind, str(key), "cpu", array.size, *rest))

    return replace(value)


def _pickled(value) -> bytes:
    """Opcodes that leave a value on the stack."""
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Reference):
        return _pickled(value.words) + b"Q"
    if isinstance(value, Call):
        made = _pickled(value.called) + _pickled(value.args) + b"R"
        made += b"" if value.attributes is None else _pickled(value.attributes) + b"b"
        return made + _items(value.items)
    if isinstance(value, dict):
        return b"}" + _items(value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_pickled, value)) + b"t"
    return pickle.dumps(value, 2)[2:-1]  # numbers and texts


def _items(items):
    pairs = b"".join(_pickled(name) + _pickled(item) for name, item in items.items())
    return b"(" + pairs + b"u" if items else b""
