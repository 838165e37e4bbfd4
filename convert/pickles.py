"""Pickles read as data: a machine that follows their opcodes and calls nothing that they name.

What a pickle asks for by name is looked up in a fixed list. A name on it stands for one of the
builders here, or for nothing at all: an `Inert` placeholder. A name that is not on it ends the
reading. Nothing is imported, so that it does not matter what a name would have done.
"""

import dataclasses
import pickletools
import typing
from collections.abc import Callable, Mapping

Builder = Callable[..., typing.Any]
_MOST_ARGUMENTS = 64  # of a call; what is taken apart again and again would take no end of time


class Refused(Exception):
    """A pickle that is damaged or asks for more than data; the message says which, for a line."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A name that a pickle asks for, and what is built where it calls it."""

    name: str
    build: Builder

    def __repr__(self):
        return self.name

    def call(self, args):
        """What is built; raises Refused for anything but the arguments of a function."""
        if not isinstance(args, tuple) or len(args) > _MOST_ARGUMENTS:
            raise Refused("damaged: it calls a name with what are no arguments")
        return self.build(*args)


class Inert:
    """Stands for an object of any kind, of which nothing is kept but what it was called."""

    def __init__(self, name):
        self.name = name

    def __repr__(self):
        return f"<{self.name}>"


def _dictionary(*args):
    """Of an empty dictionary, pairs, or a default for what is missing, which nobody asks for.

    The pairs are taken out of their list: a short file that asks for one list again and again would
    otherwise fill the memory with copies.
    """
    (given,) = args or ([],)
    if isinstance(given, dict):
        return given
    pairs = given if isinstance(given, list) else []
    are_pairs = all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs)
    if isinstance(given, tuple) or not are_pairs:
        raise Refused("damaged: a dictionary of something other than pairs")
    made = {_key(name): value for name, value in pairs}
    pairs.clear()
    return made


# Kinds of dictionaries, of which configs and state dicts are made.
_DICTIONARIES = """
    collections.OrderedDict collections.defaultdict collections.Counter
    pytorch_lightning.utilities.parsing.AttributeDict
    lightning.pytorch.utilities.parsing.AttributeDict
    lightning_fabric.utilities.data.AttributeDict lightning.fabric.utilities.data.AttributeDict
    easydict.EasyDict addict.addict.Dict yacs.config.CfgNode fvcore.common.config.CfgNode
    mmcv.utils.config.ConfigDict mmengine.config.config.ConfigDict
    """.split()  # noqa: SIM905
# Settings, scalars, places and types, which training scripts leave beside the weights.
_INERT = """
    argparse.Namespace types.SimpleNamespace typing.Any
    pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath pathlib.Path
    pathlib._local.PosixPath pathlib._local.WindowsPath
    datetime.datetime datetime.timedelta datetime.date
    builtins.set builtins.frozenset builtins.complex builtins.bytearray builtins.slice
    builtins.range builtins.int builtins.float builtins.str builtins.bool builtins.list
    builtins.dict builtins.tuple builtins.bytes
    __builtin__.set __builtin__.frozenset __builtin__.complex __builtin__.bytearray __builtin__.long
    __builtin__.int __builtin__.float __builtin__.str __builtin__.bool __builtin__.list
    __builtin__.dict __builtin__.tuple __builtin__.unicode __builtin__.object builtins.object
    copyreg._reconstructor copy_reg._reconstructor _codecs.encode
    numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy._core.numeric._frombuffer numpy.core.numeric._frombuffer
    omegaconf.dictconfig.DictConfig omegaconf.listconfig.ListConfig omegaconf.base.ContainerMetadata
    omegaconf.base.Metadata omegaconf.nodes.AnyNode omegaconf.nodes.StringNode
    omegaconf.nodes.IntegerNode omegaconf.nodes.FloatNode omegaconf.nodes.BooleanNode
    omegaconf.nodes.PathNode
    pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint
    pytorch_lightning.callbacks.early_stopping.EarlyStopping
    mmengine.logging.history_buffer.HistoryBuffer
    """.split()  # noqa: SIM905


def inert(name) -> Builder:
    """A builder of placeholders of this name, whatever it is called with."""
    return lambda *_: Inert(name)


DATA: Mapping[str, Builder] = {name: inert(name) for name in _INERT} | dict.fromkeys(
    _DICTIONARIES, _dictionary
)


def read_pickle(stream: typing.BinaryIO, admitted: Mapping[str, Builder], persistent: Builder):
    """What the pickle at a stream's position holds; the position is then behind it.

    Numbers, texts, lists, tuples and dictionaries are themselves; a set is a list. A key that is no
    number or text is replaced by a placeholder.

    Args:
      stream: of bytes, which can tell and seek.
      admitted: builders by name, of those that may be asked for.
      persistent: a builder of what the pickle only refers to, from the reference.

    Raises:
      Refused: anything else than data of these kinds.
    """
    machine = _Machine(admitted, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            machine.step(opcode.name, argument)
            if opcode.name == "STOP":
                return machine.pop()
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        text = " ".join(str(error).split())[:100]  # what a damaged file makes of it
        raise Refused(f"damaged ({text or type(error).__name__})") from None
    raise Refused("damaged: it does not end")


_MARK = object()
_ARGUMENTS = frozenset(  # opcodes that push their argument
    """
    INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    """.split()  # noqa: SIM905
)
_NEW = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}
_NOTHING_TO_DO = frozenset(("PROTO", "FRAME", "STOP"))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """The stack and the memo of a pickle, and what each opcode does to them."""

    def __init__(self, admitted, persistent):
        self.admitted, self.persistent = admitted, persistent
        self.stack, self.memo = [], {}

    def step(self, name, argument):
        if name in _ARGUMENTS:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in _TUPLES:
            self.stack.append(tuple(self.pop() for _ in range(_TUPLES[name]))[::-1])
        elif name not in _NOTHING_TO_DO:
            if (method := getattr(self, f"_{name.lower()}", None)) is None:
                raise Refused(f"it holds the opcode {name}, which no state dict needs")
            method(argument)

    def pop(self):
        value = self.stack.pop()
        if value is _MARK:
            raise Refused("damaged: a mark in place of a value")
        return value

    def _since_mark(self):
        start = len(self.stack) - 1
        while self.stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise Refused("damaged: no mark")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def _memoize(self, _):
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index):
        self.memo[index] = self.stack[-1]

    def _get(self, index):
        self.stack.append(self.memo[index])

    _binput = _long_binput = _put
    _binget = _long_binget = _get

    def _dup(self, _):
        self.stack.append(self.stack[-1])

    def _pop(self, _):
        self.stack.pop()

    def _pop_mark(self, _):
        self._since_mark()

    def _tuple(self, _):
        self.stack.append(tuple(self._since_mark()))

    def _list(self, _):
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self, _):
        values = self._since_mark()
        self.stack.append({})
        self._set(values)

    def _append(self, _):
        self._extend([self.pop()])

    def _appends(self, _):
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, values):
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Inert):
            raise Refused("damaged: it appends to what is no list")

    def _setitem(self, _):
        value, name = self.pop(), self.pop()
        self._set([name, value])

    def _setitems(self, _):
        self._set(self._since_mark())

    def _set(self, values):
        if isinstance(self.stack[-1], dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            self.stack[-1].update((_key(name), value) for name, value in pairs)
        elif not isinstance(self.stack[-1], Inert):
            raise Refused("damaged: it sets items of what is no dictionary")

    def _global(self, argument):
        self._ask_for(argument.replace(" ", "."))

    def _stack_global(self, _):
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):  # whose text may have no end
            raise Refused("damaged: it asks for what is no name")
        self._ask_for(f"{module}.{name}")

    def _ask_for(self, name):
        if (build := self.admitted.get(name)) is None:
            raise Refused(
                f"it asks for {name[:100]!r}, which no state dict is made of and which could run "
                "code"
            )
        self.stack.append(Global(name, build))

    def _reduce(self, _):
        args, called = self.pop(), self.pop()
        if not isinstance(called, Global):
            raise Refused("damaged: it calls what is no name")
        self.stack.append(called.call(args))

    _newobj = _reduce

    def _newobj_ex(self, _):
        self.pop()  # keywords
        self._reduce(None)

    def _build(self, _):
        self.pop()  # the attributes of an object, which would have code to set them

    def _binpersid(self, _):
        self.stack.append(self.persistent(self.pop()))


def _key(value):
    """A key of a dictionary: hashing anything deeper could exhaust the stack of the process."""
    plain = value is None or isinstance(value, str | int | float | bytes | Inert)
    return value if plain else Inert(type(value).__name__)


def is_pickle(head: bytes) -> bool:
    """Whether bytes begin as a pickle of protocol 2 to 5 does: torch writes no other."""
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5
