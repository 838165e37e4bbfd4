"""Tensors of a checkpoint's files by name, read one at a time: safetensors, pickles, ONNX."""

import collections
import dataclasses
import functools
import pathlib
import typing
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from convert.errors import ConversionError, one_line, show, summarise
from convert.sources import read_json_object

PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
ONNX_SUFFIX = ".onnx"
_WRAPPERS = ("model", "state_dict")  # under which training scripts save the state dict
_READ_BETWEEN_OPENINGS = 2**27  # bytes
_INDEX = ".index.json"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # others keep their own name


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: what its header says, and how to read it.

    Attributes:
      shape: in the file.
      dtype: a numpy name for floats of 32 and 16 bits, otherwise the file's own word.
      read: the array, of this shape and dtype.
    """

    shape: tuple[int, ...]
    dtype: str
    read: typing.Callable[[], np.ndarray]


def shape_of(tensors, name, axes) -> tuple[int, ...]:
    """A tensor's shape; raises ConversionError if it is missing or not of this many axes."""
    if name not in tensors or len(tensors[name].shape) != axes:
        raise ConversionError(f"{name} is missing, or not of {axes} axes")
    return tensors[name].shape


def open_tensors(file: pathlib.Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, or of all shards that an index names.

    Raises:
      ConversionError: a file that is damaged, of another kind, or holds more than tensors.
    """
    return _open_shards(file) if file.name.endswith(_INDEX) else _open_file(file)


def _open_file(file):
    if file.suffix == ".safetensors":
        return _open_safetensors(file)
    if file.suffix in PICKLE_SUFFIXES:
        return _open_pickle(file)
    if file.suffix == ONNX_SUFFIX:
        from convert.onnx_file import open_graph  # which makes Tensors itself

        return open_graph(file).weights
    raise ConversionError(
        f"{show(str(file))} is not a kind of weights that is known: "
        f"expected .safetensors, {', '.join(PICKLE_SUFFIXES)}, {ONNX_SUFFIX} or an {_INDEX}"
    )


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


def _open_pickle(file):
    """The tensors of a state dict that torch reads."""
    state, left = _unpickle(file), _READ_BETWEEN_OPENINGS

    def read(name):
        nonlocal state, left
        if left < 0:  # what was read stays in memory as long as a file is open
            state, left = _unpickle(file), _READ_BETWEEN_OPENINGS
        left -= state[name].nbytes
        return state[name]

    return {name: _torch_tensor(x, functools.partial(read, name)) for name, x in state.items()}


def _unpickle(file):
    """A state dict, unpickled by torch in the mode that builds tensors only and runs nothing."""
    try:
        import torch
    except ImportError:
        raise ConversionError(
            f"{show(str(file))} is pickled, which only torch reads: "
            "pip install -r requirements-reference.txt, or get the weights as safetensors"
        ) from None
    _check_archive(file)
    try:
        state = torch.load(
            file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file)
        )
    except Exception as error:  # unpickling raises many types; torch's texts run to pages
        raise ConversionError(
            f"{show(str(file))} is refused: damaged, or holds more than tensors, which could run "
            f"code ({type(error).__name__}); nothing in it was run. Get the weights as safetensors"
        ) from None
    if isinstance(state, dict):
        state = _unwrapped(state, torch.Tensor)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and _is_plain(torch, value) for name, value in state.items()
    ):
        raise ConversionError(
            f"{show(str(file))} is not a state dict: expected names and dense tensors, "
            f"got {show(state if not isinstance(state, dict) else list(state)[:3])}"
        )
    return state


def _check_archive(file):
    """Refuses programs, and compressed archives: torch maps the bytes of a file as they are."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile):
        return  # a legacy pickle, or damaged: torch will tell
    if any(member.filename.endswith("/constants.pkl") for member in members):
        raise ConversionError(
            f"{show(str(file))} is a TorchScript archive, a program with its weights inside: it is "
            "not run. Get the weights as safetensors; OpenAI's are on the Hugging Face hub"
        )
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ConversionError(
            f"{show(str(file))} is a compressed archive, which torch does not write; get it anew"
        )


def _is_plain(torch, value):
    """Whether a value is a tensor on the CPU with an element in memory for each that it has."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and value.nbytes <= value.untyped_storage().nbytes()
    )


def _unwrapped(state, tensor_type):
    """The state dict of one that holds it beside numbers and texts, as in `{"model": …}`."""
    for name in _WRAPPERS:
        rest = [value for key, value in state.items() if key != name]
        if isinstance(state.get(name), dict) and not any(
            isinstance(value, (dict, list, tuple, tensor_type)) for value in rest
        ):
            return state[name]
    return state


def _torch_tensor(value, read):
    """A Tensor like `value`, a torch.Tensor; `read` gives such a one again."""
    dtype = str(value.dtype).removeprefix("torch.")

    def as_numpy():
        tensor = read().detach().resolve_neg()
        if dtype == "bfloat16":  # numpy has none: hand over the bits
            import torch

            return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()

    return Tensor(tuple(value.shape), dtype, as_numpy)


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
        found = _open_file(shard)
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
