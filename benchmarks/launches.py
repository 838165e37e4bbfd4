"""How many kernels a compiled program launches on a GPU, read off its text."""

import collections
import re

_COMMENT = re.compile(r"/\*.*?\*/")  # XLA numbers the members of long tuples
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%[\w.\-]+ = (?:\(.*?\)|\S+) ([\w\-]+)\(")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_NO_KERNEL = frozenset(  # what only names, places or frees memory
    ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-done", "async-done")
)


def count_launches(text) -> int:
    """Kernels and library calls of one run, those in a loop once for each trip.

    Args:
      text: an optimized HLO module, as of `compiled.as_text()`.

    Raises:
      ValueError: a text without an entry computation, or a loop of unknown length.
    """
    bodies, entry = _computations(text)
    if entry is None:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return _launches(entry, bodies)


def _computations(text):
    """The lines of each computation by its name, and the name of the entry."""
    bodies, current, entry = collections.defaultdict(list), None, None
    for line in _COMMENT.sub("", text).splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            entry = current if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            bodies[current].append(line)
    return bodies, entry


def _launches(name, bodies):
    total = 0
    for line in bodies[name]:
        if not (found := _OPERATION.match(line)):
            continue
        if found[1] == "while":
            if not (trips := _TRIPS.search(line)):
                raise ValueError(f"a loop of unknown length: {line.strip()[:80]}")
            body = re.search(r"body=%?([\w.\-]+)", line)[1]
            total += int(trips[1]) * _launches(body, bodies)
        elif found[1] in ("call", "async-start"):
            total += _launches(re.search(r"(?:to_apply|calls)=%?([\w.\-]+)", line)[1], bodies)
        else:
            total += found[1] not in _NO_KERNEL
    return total
