"""What `torch.save` writes, read without torch: zip archives, and the pickles before version 1.6.

An archive has a pickle, `NAME/data.pkl`, that refers to storages, `NAME/data/KEY`: plain numbers in
a row, of which a tensor is a view. An older file has the pickles first, and the storages behind.
"""

import dataclasses
import functools
import io
import math
import mmap
import os
import struct
import sys
import typing
import zipfile

import ml_dtypes
import numpy as np

from convert.errors import ConversionError, one_line, show
from convert.pickles import DATA, Refused, inert, read_pickle
from convert.tensors import Tensor

_MEMBER = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C
_MOST_AXES = 64  # of an array of numpy
_STORAGES = {  # dtypes by what torch calls storages of them
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "DoubleStorage": "float64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
_UNSTORED = ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")  # in storages of bytes
_DTYPES = (*_STORAGES.values(), *_UNSTORED)
_NO_TENSORS = """
    UntypedStorage storage.UntypedStorage device torch_version.TorchVersion Tensor
    nn.parameter.Parameter nn.parameter.Buffer _utils._rebuild_sparse_tensor
    _utils._rebuild_sparse_csr_tensor _utils._rebuild_meta_tensor_no_storage _utils._rebuild_qtensor
    serialization._get_layout
    """.split()  # noqa: SIM905
_WITHOUT_TENSORS = {
    **DATA,
    **{f"torch.{name}": inert(f"torch.{name}") for name in (*_STORAGES, *_DTYPES, *_NO_TENSORS)},
    "torch.Size": lambda sizes=(): sizes,
}


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers in a row in a file: how many of which dtype, or bytes where that is None."""

    key: str
    dtype: str | None
    count: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.count * (1 if self.dtype is None else _dtype(self.dtype).itemsize)


@dataclasses.dataclass(frozen=True)
class _View:
    """A tensor as a view of a storage: offset and strides count elements of `dtype`."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements from the first to behind the last."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides))


def read_torch_file(file) -> typing.Any:
    """What a file of `torch.save` holds, its tensors as `Tensor`s, everything else as in `pickles`.

    Raises:
      ConversionError: a file that is damaged, or asks for more than data.
    """
    contents = _Contents(file)
    try:
        with open(file, "rb") as stream:
            if stream.read(4) == _MEMBER:
                value = contents.of_archive(stream)
            else:  # of a map no more can be read than there is
                with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    value = contents.of_pickles(mapped)
        contents.check_storages()
    except Refused as reason:
        raise refusal(file, reason) from None
    return value


def refusal(file, reason) -> ConversionError:
    """The error for a file that is not read any further."""
    return ConversionError(
        f"{show(str(file))} is refused: {reason}; nothing in it was run. "
        "Get the file anew, or the weights as safetensors"
    )


class _Contents:
    """A file in the reading: which storages its tensors refer to, and where in it these lie."""

    def __init__(self, file):
        self.file = file
        self.storages: set[_Storage] = set()
        self.places: dict[str, tuple[int, int]] = {}  # start and size in bytes, by key

    def of_archive(self, stream):
        """The object in a zip archive."""
        try:
            with zipfile.ZipFile(stream) as archive:
                prefix = _checked_archive(archive)
                for member in archive.infolist():
                    if member.filename.startswith(f"{prefix}data/"):
                        key = member.filename.removeprefix(f"{prefix}data/")
                        self.places[key] = _place(stream, member)
                start, size = _place(stream, archive.getinfo(f"{prefix}data.pkl"))
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            OSError,
            EOFError,
            struct.error,
        ) as error:
            raise Refused(f"damaged ({one_line(error)[:100]})") from None
        stream.seek(start)
        return self.read_pickle(io.BytesIO(stream.read(size)))

    def of_pickles(self, stream):
        """The object in pickles of a number that is always the same, a version, the machine, itself
        and the keys of the storages, which follow in this order.
        """
        if self.read_pickle(stream) != _MAGIC:
            raise Refused("a pickle that is not torch's: expected a state dict by torch.save")
        _version, _machine, value, keys = (self.read_pickle(stream) for _ in range(4))
        storages = {storage.key: storage for storage in self.storages}
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise Refused("damaged: no list of storages")
        for key in keys:
            count = int.from_bytes(stream.read(8), "little")
            if key not in storages or count != storages[key].count:
                raise Refused("damaged: a storage that no tensor refers to, or of another size")
            self.places[key] = stream.tell(), storages[key].size
            if sum(self.places[key]) > stream.size():
                raise Refused("damaged: it ends before its numbers do")
            stream.seek(sum(self.places[key]))
        return value

    def check_storages(self):
        """Raises Refused for a storage that is not in the file, or of fewer numbers."""
        for storage in self.storages:
            if self.places.get(storage.key, (0, -1))[1] < storage.size:
                raise Refused("damaged: it lacks numbers of its tensors")

    def read_pickle(self, stream):
        """The pickle at the stream's position."""
        return read_pickle(stream, self._admitted(), self._storage)

    def _admitted(self):
        """Builders of what torch's pickles ask for."""
        return _WITHOUT_TENSORS | {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": lambda *args: self._tensor(*args[:4], dtype=args[6]),
            "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
            "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
            "torch._tensor._rebuild_from_type_v2": self._of_subclass,
        }

    def _storage(self, reference):
        """Of ("storage", type, key, device, count), to which older files add None."""
        if not isinstance(reference, tuple) or len(reference) > 6:
            raise Refused("damaged: a storage that is none")
        word, kind, key, _, count, *view = reference
        name = kind.name.rpartition(".")[2]
        if word != "storage" or not isinstance(key, str) or not _are_counts((count,)):
            raise Refused("damaged: a storage that is none")
        if view not in ([], [None]):
            raise Refused("storages inside storages, which torch wrote before version 0.4")
        if name not in _STORAGES and name != "UntypedStorage":
            raise Refused(f"it holds numbers of type {show(name)}")
        storage = _Storage(key, _STORAGES.get(name), count)
        self.storages.add(storage)
        return storage

    def _of_subclass(self, called, _kind, args, _state):
        """Of a function that rebuilds a plain tensor, and what would make another of it."""
        if called.build == self._of_subclass:
            raise Refused("damaged: a function that calls itself")
        return called.call(args)

    def _tensor(self, storage, offset, shape, strides, *_, dtype=None):
        """Of the arguments of torch's functions that rebuild one."""
        name = storage.dtype if dtype is None else dtype.name.removeprefix("torch.")
        axes = max(len(shape), len(strides))
        if name not in _DTYPES or axes > _MOST_AXES or not _are_counts((offset, *shape, *strides)):
            raise Refused("damaged: a tensor that is none")
        view = _View(storage, name, offset, tuple(shape), tuple(strides))
        itemsize = _dtype(name).itemsize
        if math.prod(n or 1 for n in shape) * itemsize > sys.maxsize:  # numpy has none so large
            raise Refused("damaged: a tensor that is none")
        if len(shape) != len(strides) or (offset + view.span) * itemsize > storage.size:
            raise Refused("damaged: a tensor beyond what is stored")
        if math.prod(shape) * itemsize > storage.size:
            raise Refused("a tensor of more elements than are stored")
        return Tensor(view.shape, name, functools.partial(self._read, view))

    def _read(self, view):
        """The array, copied from the file."""
        dtype = _dtype(view.dtype)
        start, _ = self.places[view.storage.key]
        start += view.offset * dtype.itemsize
        span = np.fromfile(self.file, dtype, view.span, offset=start)
        if span.size < view.span:  # of which as_strided would give what lies behind in memory
            raise refusal(self.file, "it ends before its numbers do, and did not when opened")
        strides = [step * dtype.itemsize for step in view.strides]
        array = np.lib.stride_tricks.as_strided(span, view.shape, strides, writeable=False)
        return np.ascontiguousarray(array).reshape(view.shape)


def _checked_archive(archive):
    """What stands before all names; raises Refused for programs and for what torch never writes."""
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise Refused(
            "a TorchScript archive, a program with its weights inside, is not run (OpenAI's are on "
            "the Hugging Face hub)"
        )
    pickles = [name for name in names if name.split("/", 1)[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise Refused(f"an archive that is not torch's, of {show(names[:3])}")
    if any(x.compress_type != zipfile.ZIP_STORED or x.flag_bits & 1 for x in archive.infolist()):
        raise Refused("a compressed or locked archive, which torch does not write")
    prefix = pickles[0].removesuffix("data.pkl")
    if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder") != b"little":
        raise Refused("its numbers are big-endian; save them on another machine")
    return prefix


def _place(stream, member):
    """Start and size in bytes of a member, whose checksum torch can leave out."""
    stream.seek(member.header_offset)
    signature, name, extra = struct.unpack("<4s22xHH", stream.read(30))
    start, size = member.header_offset + 30 + name + extra, member.file_size
    if signature != _MEMBER or start + size > os.fstat(stream.fileno()).st_size:
        raise Refused(f"damaged: {show(member.filename)} is not where it should be")
    return start, size


def _dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def _are_counts(values):
    return all(isinstance(x, int) and not isinstance(x, bool) and 0 <= x < 2**62 for x in values)
