"""What a TPU would take for a compiled program, estimated without the TPU.

An operation takes the longest of its bundles' cycles (`benchmarks.bundles`), the rows that it feeds
to the matrix units, and its bytes in HBM at 90 % of the bandwidth; operations run one after the
other, loops as often as they say; a program takes at least as long as all its HBM traffic. Against
the peaks of a v5e this is within 1 % for a product of 8,192³ and 11 % for scaling 1 GiB (the 90 %).

It is no measurement. Not in it: what starting an operation costs (about a microsecond: programs of
thousands of short operations are flattered), the time of collectives, operations that overlap.
"""

import dataclasses
import math
import re

from benchmarks.bundles import Bundles


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip: name of a topology, clock, HBM, and rows all matrix units take in a cycle."""

    topology: str
    clock: float  # Hz
    bandwidth: float  # bytes a second
    peak: float  # bfloat16 operations a second
    rows: int | None = None  # None: of other instructions, which are not counted


CHIPS = {
    "v5e": Chip("v5e:2x2", 1.50e9, 819e9, 197e12, 4),
    "v6e": Chip("v6e:2x2", 1.75e9, 1640e9, 918e12),
    "v5p": Chip("v5p:2x2x1", 1.75e9, 2765e9, 459e12, 4),
}

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4}
_BYTES |= {"s32": 4, "u32": 4, "s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-<>]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-<>]+) \(.*\{\s*$")
_NAME = re.compile(r"%([\w.\-<>]+)")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_MOVES = ("copy-start", "slice-start", "async-start")  # between HBM and VMEM, beside the others
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # which operand is written
_NOTHING = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "async-update"),
    *(f"{move.removesuffix('-start')}-done" for move in (*_MOVES, *_COLLECTIVES)),
}
_NO_CODE = ("AllocateBuffer", "ConcatBitcast", "GatherScatterIndicesBitpacked", "Sharding")


@dataclasses.dataclass(frozen=True)
class Operation:
    """One line of a compiled program, `name = shape code(inside)rest`."""

    name: str
    code: str
    shape: str
    inside: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the operations that it reads."""
        return _NAME.findall(self.inside)

    def attribute(self, pattern):
        """What a pattern's first group finds behind the operands, or None."""
        found = re.search(pattern, self.rest)
        return found and found[1]

    @property
    def twin(self):
        """What operations share that were compiled once: opcode, shape and the compiler's cost."""
        cost = self.attribute(r'"estimated_cycles":"(\d+)"')
        return self.code, re.sub(r"\{[^}]*\}", "", self.shape), cost


@dataclasses.dataclass
class Estimate:
    """The estimate of a program.

    Attributes:
      seconds: how long it takes.
      operations: how many run, loops unrolled.
      guessed: names of what had no bundles, or loops of unknown length.
      collectives: bytes that each kind of collective brings, loops unrolled.
    """

    seconds: float
    operations: int
    guessed: list[str]
    collectives: dict[str, int]


def estimate(text, bundles: dict[str, Bundles], chip: Chip) -> Estimate:
    """What a compiled program takes on a chip, from its text and its operations' bundles."""
    computations, entry = parse(text)
    total = _Total(computations, bundles, chip)
    total.add(entry, 1)
    seconds = max(total.seconds, total.traffic / (0.9 * chip.bandwidth))
    return Estimate(seconds, total.operations, total.guessed, total.collectives)


def parse(text) -> tuple[dict[str, dict[str, Operation]], str]:
    """The operations of each computation of a program by name, and the name of its entry."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        if current is None:
            if head := _HEAD.match(line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif found := _LINE.match(line):
            current[found[1]] = _operation(*found.groups())
    return computations, entry


def _operation(name, text) -> Operation:
    """The operation of this name from `shape code(operands), rest`."""
    end = _closing(text) if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    code = text[: text.index("(")]
    end = len(code) + _closing(text[len(code) :])
    return Operation(name, code, shape, text[len(code) + 1 : end - 1], text[end:])


def _closing(text) -> int:
    """Where the parenthesis that a text begins with is closed, the position after it."""
    depth = 0
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return index + 1
    return len(text)


def hbm_bytes(shape) -> int:
    """Bytes in HBM of the arrays in a shape's text, filled up to tiles."""
    return sum(_padded_bytes(*array) for array in _ARRAY.findall(shape) if "S(" not in array[2])


def all_bytes(shape) -> int:
    """Bytes of the arrays in a shape's text, in whatever memory."""
    return sum(_padded_bytes(*array) for array in _ARRAY.findall(shape))


def _padded_bytes(dtype, sizes, layout) -> int:
    if dtype not in _BYTES:
        return 0
    sizes = [int(size) for size in sizes.split(",") if size]
    order, _, tiling = layout.partition(":")
    order = [int(axis) for axis in order.split(",") if axis.strip().isdigit()]
    if len(order) == len(sizes):  # from the fastest axis to the slowest
        sizes = [sizes[axis] for axis in reversed(order)]
    if tile := re.search(r"T\(([\d,]+)\)", tiling):
        for back, size in enumerate(reversed(tile[1].split(",")), 1):
            if back <= len(sizes):
                sizes[-back] = -(-sizes[-back] // int(size)) * int(size)
    return _BYTES[dtype] * math.prod(sizes)


class _Total:
    """Sums over the operations of a program as they run."""

    def __init__(self, computations, bundles, chip):
        self.computations, self.bundles, self.chip = computations, bundles, chip
        self.seconds = self.traffic = self.operations = 0
        self.guessed, self.collectives, self.twins = [], {}, {}
        for operations in computations.values():
            for operation in operations.values():
                if operation.name in bundles:
                    self.twins.setdefault(operation.twin, bundles[operation.name])

    def add(self, name, times):
        """What a computation takes that runs so many times."""
        operations = self.computations[name]
        for operation in operations.values():
            self._add_operation(operation, operations, times)

    def _add_operation(self, operation, operations, times):
        code = operation.code
        if code == "while":
            trips = self._trips(operation)
            self.add(operation.attribute(r"body=%?([\w.\-<>]+)"), times * trips)
        elif code == "call":
            self.add(operation.attribute(r"to_apply=%?([\w.\-<>]+)"), times)
        elif code == "conditional":
            branches = operation.attribute(r"branch_computations=\{([^}]*)\}") or ""
            both = re.findall(r"(?:true|false)_computation=%?([\w.\-<>]+)", operation.rest)
            for branch in _NAME.findall(branches) + both:
                self.add(branch, times)
        elif code in _MOVES:
            self.traffic += times * _moved(operation)
        elif (collective := code.removesuffix("-start")) in _COLLECTIVES:
            size = times * all_bytes(operation.shape)
            self.collectives[collective] = self.collectives.get(collective, 0) + size
        elif code not in _NOTHING and not self._is_no_code(operation):
            self._add_computing(operation, operations, times)

    def _add_computing(self, operation, operations, times):
        touched = self._touched(operation, operations)
        cost = self.bundles.get(operation.name) or self.twins.get(operation.twin)
        scalar = all_bytes(operation.shape) <= 4096 and "[]" in operation.shape
        if cost is None and scalar:  # a loop's counter
            return
        seconds = touched / (0.9 * self.chip.bandwidth)
        if cost is None or cost.unknown:
            self.guessed.append(operation.name)
        if cost is None:
            estimated = operation.attribute(r'"estimated_cycles":"(\d+)"') or 0
            seconds = max(seconds, int(estimated) / self.chip.clock)
        else:
            rows = cost.rows / self.chip.rows if self.chip.rows else 0
            seconds = max(seconds, cost.cycles / self.chip.clock, rows / self.chip.clock)
        self.seconds += times * seconds
        self.traffic += times * touched
        self.operations += times

    def _is_no_code(self, operation):
        target = operation.attribute(r'custom_call_target="([^"]*)"')
        return operation.code == "custom-call" and target in _NO_CODE

    def _trips(self, operation) -> int:
        """How often a loop runs; 1, as a guess, where the program does not say."""
        if known := operation.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition = self.computations[operation.attribute(r"condition=%?([\w.\-<>]+)")]
        for test in condition.values():
            if test.code == "constant" and test.inside.isdigit():
                return int(test.inside)
        self.guessed.append(operation.name)
        return 1

    def _touched(self, operation, operations) -> int:
        """Bytes in HBM that an operation reads and writes; of slices and updates, theirs."""
        written, read = hbm_bytes(operation.shape), 0
        called = operation.attribute(r"calls=%?([\w.\-<>]+)")
        for index, name in enumerate(operation.operands):
            size = hbm_bytes(operations[name].shape) if name in operations else 0
            if not size:
                continue
            if operation.code == "fusion":
                size, update = self._taken(called, index, size)
                written = written if update is None else min(written, update)
            elif operation.code in _SLICES:
                size = min(size, all_bytes(operation.shape))
            elif operation.code in _UPDATES and index == 0:
                part = operations[operation.operands[_UPDATES[operation.code]]]
                size, written = 0, all_bytes(part.shape)
            read += size
        return written + read

    def _taken(self, called, index, full) -> tuple[int, int | None]:
        """Bytes that a fused computation reads of an operand, and writes into it or None."""
        operations = self.computations.get(called, {})
        is_it = lambda operation: (operation.code, operation.inside) == ("parameter", str(index))
        mine = {operation.name for operation in operations.values() if is_it(operation)}
        taken, written = 0, None
        for operation in operations.values():
            if not mine & set(operation.operands):
                continue
            first = operation.operands[0] in mine
            if operation.code == "bitcast":
                mine.add(operation.name)
            elif operation.code in _SLICES and first:
                taken += all_bytes(operation.shape)
            elif operation.code in _UPDATES and first:
                part = operations[operation.operands[_UPDATES[operation.code]]]
                written = (written or 0) + all_bytes(part.shape)
            elif operation.code == "fusion":
                inner = operation.attribute(r"calls=%?([\w.\-<>]+)")
                for position, name in enumerate(operation.operands):
                    if name in mine:
                        part, update = self._taken(inner, position, full)
                        taken += part
                        written = written if update is None else (written or 0) + update
            else:
                return full, None
        return min(taken, full), written


def _moved(operation) -> int:
    """Bytes in HBM that a move reads or writes, or both."""
    arrays = [array[0] for array in re.finditer(_ARRAY, operation.shape)]
    sizes = [size for array in arrays if (size := all_bytes(array)) > 64]
    if operation.code == "slice-start":
        return min(sizes, default=0)
    return min(sizes, default=0) * sum(hbm_bytes(array) > 0 for array in arrays[:2])
