"""The state dicts in what training saves: found, their names without wrappers, and one chosen."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping

from convert.errors import ConversionError, show
from convert.tensors import Tensor

_MOST = 10  # state dicts listed in one message
_DEEPEST = 3  # names of dictionaries inside each other, as in checkpoint["model"]["state_dict"]
_LONGEST = 1000  # letters of such a name: each dictionary inside has them in front of its own
_MOST_WRAPPERS = 8  # around each other

# What stands before all names of a model that something wraps: data parallelism, peft, Lightning,
# averages, and what self-supervised training calls a network and its average.
_WRAPPERS = frozenset(
    """
    module base_model model backbone encoder net network ema
    teacher student base_encoder momentum_encoder target_encoder context_encoder online target
    """.split()  # noqa: SIM905
)
# What stands anywhere in a name: compiling, sharding and rematerialising wrap single blocks, too.
_INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_CHUNKED = re.compile(r"blocks\.\d+\.(?=\d+\.)")


@dataclasses.dataclass(frozen=True)
class StateDicts:
    """What a file holds: tensors by name, under the dotted names of the dictionaries around them.

    Attributes:
      dicts: by where they lie, "" for the file itself.
      others: names at the top of the file of what holds no state dict.
    """

    dicts: Mapping[str, Mapping[str, Tensor]]
    others: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class View:
    """A model's tensors in a file, under the names that its library gave them.

    Attributes:
      tensors: by name.
      place: of the state dict in the file; "" for the file itself.
      prefix: taken off all names.
      wrappers: taken out of names wherever they stood.
      in_chunks: whether blocks had the numbers of chunks, which were taken off, too.
      left_out: tensors of the state dict whose names begin otherwise.
      others: what the file holds beside the state dict.
    """

    tensors: Mapping[str, Tensor]
    place: str = ""
    prefix: str = ""
    wrappers: tuple[str, ...] = ()
    in_chunks: bool = False
    left_out: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What `--weights` calls it."""
        return ".".join(x for x in (self.place, self.prefix.rstrip(".")) if x)

    def __str__(self):
        numbers = sum(math.prod(tensor.shape) for tensor in self.tensors.values())
        return f"{show(self.label)} ({len(self.tensors)} tensors, {numbers:,} numbers)"


def find_state_dicts(file, value) -> StateDicts:
    """The state dicts in what a file of torch holds.

    One is a dictionary with tensors; what else it may hold is not read.

    Raises:
      ConversionError: no tensors by name.
    """
    dicts = {}
    seen = set()

    def look(inside, path):
        if not isinstance(inside, dict) or id(inside) in seen:
            return
        seen.add(id(inside))
        tensors = {
            name: x for name, x in inside.items() if isinstance(name, str) and type(x) is Tensor
        }
        if tensors:
            dicts[".".join(path)] = tensors
        if len(path) < _DEEPEST:
            for name, x in inside.items():
                if isinstance(name, str) and len(name) <= _LONGEST:
                    look(x, (*path, name))

    look(value, ())
    if not dicts:
        raise ConversionError(
            f"{show(str(file))} is not a state dict: expected names and dense tensors, "
            f"got {show(list(value)[:3] if isinstance(value, dict) else value)}"
        )
    holding = {place.partition(".")[0] for place in dicts}
    names = (name for name, x in value.items() if isinstance(name, str) and type(x) is not Tensor)
    return StateDicts(dicts, tuple(name for name in names if name.partition(".")[0] not in holding))


def choose(found: StateDicts, fits: Callable[[Mapping], bool], file, wanted=None) -> View:
    """The view of a state dict that fits, under whatever prefix.

    Where none fits, and there is one only, it is that one, for others to say what is wrong.

    Args:
      found: in the file.
      fits: whether names of tensors are those of a model that is looked for.
      file: to name in errors.
      wanted: the label, or a part of it between dots, of the one to take.

    Raises:
      ConversionError: none or several; the message lists them.
    """
    views = [view for place in found.dicts for view in _fitting(found, place, fits)]
    if wanted is not None:
        return _wanted(views or [_whole(found, place) for place in found.dicts], file, wanted)
    if len(views) == 1:
        return views[0]
    if views:
        raise ConversionError(
            f"{show(str(file))} holds several state dicts that fit: {_listed(views)}; "
            "choose with --weights NAME"
        )
    if len(found.dicts) == 1:
        return _whole(found, next(iter(found.dicts)))
    wholes = [_whole(found, place) for place in found.dicts]
    raise ConversionError(
        f"{show(str(file))} holds several state dicts, and the names in none of them are known: "
        f"{_listed(wholes)}; choose with --weights NAME"
    )


def _fitting(found, place, fits):
    """A state dict without any of the prefixes that some of its names have, where that fits.

    Of prefixes of which one begins with the other it is the shorter.
    """
    tensors, wrappers = _unwrapped(found.dicts[place])
    under = {}  # tensors by prefix
    for name, tensor in tensors.items():
        for prefix in _prefixes(name):
            under.setdefault(prefix, {})[name.removeprefix(prefix)] = tensor
    fitting = {}
    for prefix in sorted(under, key=len):
        view, in_chunks = _unchunked(under[prefix])
        if fitting.keys().isdisjoint(_prefixes(prefix)) and fits(view):
            left_out = tuple(name for name in tensors if not name.startswith(prefix))
            others = _others(found, place)
            fitting[prefix] = View(view, place, prefix, wrappers, in_chunks, left_out, others)
    return fitting.values()


def _unchunked(tensors):
    """Tensors without the numbers of chunks, and whether their names had any."""
    names = {_CHUNKED.sub("blocks.", name, count=1): x for name, x in tensors.items()}
    in_chunks = names.keys() != tensors.keys() and len(names) == len(tensors)
    return (names if in_chunks else tensors), in_chunks


def _wanted(views, file, wanted):
    exact = [view for view in views if view.label == wanted]
    matches = exact or [view for view in views if f".{wanted}." in f".{view.label}."]
    if len(matches) != 1:
        raise ConversionError(
            f"weights {show(wanted)} is the name of {'several' if matches else 'none'} of the "
            f"state dicts in {show(str(file))}: {_listed(matches or views)}"
        )
    return matches[0]


def _listed(views):
    rest = f" and {len(views) - _MOST} more" if len(views) > _MOST else ""
    return ", ".join(map(str, views[:_MOST])) + rest


def _whole(found, place):
    tensors = found.dicts[place]
    return View(tensors, place, others=_others(found, place))


def _others(found, place):
    dicts = dict.fromkeys(other for other in found.dicts if other not in (place, ""))
    return (*dicts, *found.others)


def _prefixes(name):
    """Those of a name that are made of wrappers' names, the empty one first."""
    prefix = ""
    yield prefix
    for segment in name.split(".", _MOST_WRAPPERS)[:-1]:
        if segment not in _WRAPPERS:
            return
        prefix += f"{segment}."
        yield prefix


def _unwrapped(tensors):
    """A state dict without the names of what wraps single modules, and these names."""
    names = [name.split(".") for name in tensors]
    wrappers = tuple(word for word in _INSIDE if any(word in name for name in names))
    short = [".".join(segment for segment in name if segment not in _INSIDE) for name in names]
    if not wrappers or len(set(short)) < len(short):
        return tensors, ()
    return dict(zip(short, tensors.values())), wrappers
