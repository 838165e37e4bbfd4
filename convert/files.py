"""The tensors in a checkpoint's files, read one at a time: safetensors, torch's, numpy's, ONNX."""

import collections
import contextlib
import math
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from convert.errors import ConversionError, one_line, show, summarise
from convert.onnx_file import open_graph
from convert.pickles import is_pickle
from convert.sources import read_json_object
from convert.state_dicts import StateDicts, find_state_dicts
from convert.tensors import Tensor
from convert.torch_files import read_torch_file, refusal

ONNX_SUFFIX = ".onnx"
_ARRAY = ".npy"
_BFLOAT16 = np.dtype("V2")  # as numpy stores it, which does not know it
_WEIGHTS = "params"  # of big_vision, beside its optimizer's
_ARCHIVE = b"PK\x03\x04"
_DEFLATED = 1032  # times its compressed size is what zlib can give at most
_INDEX = ".index.json"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # others keep their own name


def open_tensors(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, or of all shards that an index names.

    Raises:
      ConversionError: a file that is damaged, of another kind, or holds several state dicts.
    """
    return _the_one(open_state_dicts(file), file)


def open_state_dicts(file: pathlib.Path) -> StateDicts:
    """All state dicts of a file of weights, or the one of all shards that an index names.

    Raises:
      ConversionError: a file that is damaged, of another kind, or holds no tensors.
    """
    return StateDicts({"": _open_shards(file)}) if file.name.endswith(_INDEX) else _open_file(file)


def _the_one(found, file):
    if len(found.dicts) > 1:
        names = show(list(found.dicts))
        raise ConversionError(f"{show(str(file))} holds several state dicts: {names}")
    return next(iter(found.dicts.values()))


def _open_file(file):
    """Of the kind that the content is, unless the name promises one of those without a mark."""
    if file.suffix == ONNX_SUFFIX:
        return StateDicts({"": open_graph(file).weights})
    with file.open("rb") as stream:
        head = stream.read(9)
    if file.suffix == ".safetensors" or head[8:] == b"{":
        return StateDicts({"": _open_safetensors(file)})
    if head[:4] == _ARCHIVE and _is_npz(file):
        return _of_a_tree(_open_npz(file))
    if head[:4] != _ARCHIVE and not is_pickle(head):
        raise refusal(
            file,
            "not a kind of weights that is known (safetensors, an archive or a pickle of "
            f"torch.save, an .npz, what is named *{ONNX_SUFFIX} or *{_INDEX})",
        )
    return find_state_dicts(file, read_torch_file(file))


def _is_npz(file):
    try:
        with zipfile.ZipFile(file) as archive:
            return all(name.endswith(_ARRAY) for name in archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return False  # torch's, or damaged


def _open_safetensors(file):
    """The library checks that offsets fit the shapes, overlap nowhere and fill the file."""

    def tensor(name, header):
        dtype = _DTYPES.get(header.get_dtype(), header.get_dtype())
        return Tensor(tuple(header.get_shape()), dtype, lambda: read(name))

    def read(name):  # opened anew: what was read stays in memory as long as a file is open
        with safetensors.safe_open(file, framework="numpy") as handle:
            return handle.get_tensor(name)

    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            return {name: tensor(name, handle.get_slice(name)) for name in handle.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ConversionError(
            f"{show(str(file))} is damaged, or not safetensors: {one_line(error)}; get it anew"
        ) from None


def _open_npz(file):
    """The arrays of an archive of numpy, none of which may hold Python objects."""
    with _npz_errors(file), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        return {name.removesuffix(_ARRAY): _array(file, archive, name) for name in names}


def _of_a_tree(arrays):
    """The state dicts of arrays whose names are paths in a tree, as big_vision writes them."""
    weights = {
        name.removeprefix(f"{_WEIGHTS}/"): array
        for name, array in arrays.items()
        if name.startswith(f"{_WEIGHTS}/")
    }
    if not weights:
        return StateDicts({"": arrays})
    others = dict.fromkeys(name.partition("/")[0] for name in arrays)
    return StateDicts({_WEIGHTS: weights}, tuple(other for other in others if other != _WEIGHTS))


def _array(file, archive, name):
    """The Tensor of a member, by its header."""
    with archive.open(name) as member:
        version = np.lib.format.read_magic(member)
        header = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}[version]
        shape, _, dtype = getattr(np.lib.format, header)(member)
    largest = _DEFLATED * file.stat().st_size
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > largest:
        raise ValueError(f"{show(name)} is of objects, or larger than the file can hold")

    def read():
        with _npz_errors(file), zipfile.ZipFile(file) as archive, archive.open(name) as member:
            array = np.lib.format.read_array(member, allow_pickle=False)
            return array.view(ml_dtypes.bfloat16) if dtype == _BFLOAT16 else array

    return Tensor(shape, "bfloat16" if dtype == _BFLOAT16 else dtype.name, read)


@contextlib.contextmanager
def _npz_errors(file):
    try:
        yield
    except Exception as error:  # of zip, zlib or Python's parser in numpy: many types, one cause
        raise ConversionError(
            f"{show(str(file))} is damaged, or no .npz of numbers: {one_line(error)[:200]}; "
            "get it anew"
        ) from None


def _open_shards(index):
    """The tensors of all shards; index and shards must name the same ones."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConversionError(f"{show(str(index))} has no weight_map from tensors to files")
    shards = collections.defaultdict(set)
    for name, shard in weight_map.items():
        shards[_shard_path(index, shard)].add(name)
    tensors, problems = {}, []
    for shard, names in shards.items():
        found = _the_one(_open_file(shard), shard)
        problems += [f"{shard.name} lacks {show(name)}" for name in sorted(names - found.keys())]
        extra = sorted(found.keys() - names)
        problems += [f"{shard.name} holds {show(name)}, not in the index" for name in extra]
        tensors.update(found)
    if problems:
        raise ConversionError(f"{show(str(index))} and its files disagree: {summarise(problems)}")
    return tensors


def _shard_path(index, shard):
    """The path of a shard that lies beside its index and is of the index's kind."""
    suffix = pathlib.Path(index.name.removesuffix(_INDEX)).suffix
    # A plain file name: nothing that an index says may lead out of its directory.
    plain = isinstance(shard, str) and pathlib.PurePath(shard).name == shard and "\\" not in shard
    if not plain or "\0" in shard or not shard.endswith(suffix):
        raise ConversionError(
            f"{show(str(index))} names the file {show(shard)}: "
            f"expected the plain name of a {suffix} file in the same directory"
        )
    path = index.parent / shard
    if not path.is_file():
        raise ConversionError(f"{show(str(index))} names {show(shard)}, which is not there")
    return path
