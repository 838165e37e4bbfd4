"""Cycles of one operation of a TPU program, from the final instruction bundles that libtpu dumps.

A bundle is what one cycle starts. Loops are branches back to a region's start, with the number of
trips in the comparison that ends them; where that is no constant the loop counts once.
"""

import dataclasses
import pathlib
import re

# Given to libtpu before jax is imported: one file per operation into a folder that exists.
DUMP_FLAGS = (
    "--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true "
    "--xla_jf_dump_llo_pass_label_regex=final_bundles"
)

_START = re.compile(r"^\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2})?\s*:")
_REGION = re.compile(r"(?:Start|Start/End empty) region (\d+)")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder \S+ ?,? ?(\S+?),? /\* loop exit test \*/")
_BRANCH = re.compile(r"sbr\.rel[^;}]*target = \$region(\d+)")
_WAIT = re.compile(r"vdelay (\d+)")
_PRODUCT = re.compile(r"\bvmatmul\S*")


@dataclasses.dataclass(frozen=True)
class Bundles:
    """What one operation costs.

    Attributes:
      cycles: bundles with their loops' trips, and the cycles they say they wait.
      rows: fed to the matrix units.
      unknown: loops whose trips are not known.
    """

    cycles: int
    rows: int
    unknown: int


def read_dump(folder) -> dict[str, Bundles]:
    """What every operation in a folder of dumps costs, by its name in the compiled program."""
    found = {}
    for file in pathlib.Path(folder).glob("*-final_bundles.txt"):
        name = re.fullmatch(r"\d+-(.*?)-\d+-(.*)final_bundles\.txt", file.name)
        if name and not name[1].startswith("<") and not name[2]:
            found[name[1]] = count(file.read_text(encoding="utf-8"))
    return found


def count(text) -> Bundles:
    """The cost of the operation whose final bundles these are."""
    bundles = _split(text)
    starts, weights, unknown = {}, [1] * len(bundles), 0
    for index, bundle in enumerate(bundles):
        for region in _REGION.findall(bundle):
            starts.setdefault(region, index)
    ends = {i: found[1] for i, bundle in enumerate(bundles) if (found := _EXIT.search(bundle))}
    for end, bundle in enumerate(bundles):
        for region in _BRANCH.findall(bundle):
            start = starts.get(region, end + 1)
            if start > end:  # forward: no loop
                continue
            tests = [i for i in ends if start <= i <= end]
            trips = _number(ends[max(tests)]) if tests else None
            unknown += trips is None
            for index in range(start, end + 1):
                weights[index] *= 1 if trips is None else trips
    cycles = sum(w * (1 + sum(map(int, _WAIT.findall(b)))) for w, b in zip(weights, bundles))
    rows = sum(w * sum(map(_rows, _PRODUCT.findall(b))) for w, b in zip(weights, bundles))
    return Bundles(cycles, rows, unknown)


def _split(text) -> list[str]:
    """The bundles; the key in front of them is none."""
    bundles = []
    for line in text.splitlines():
        if _START.match(line):
            bundles.append(line)
        elif bundles:
            bundles[-1] += line
    return bundles


def _number(operand):
    """The constant that an operand is, decimal or hexadecimal, or None for a register."""
    try:
        return int(operand, 0)
    except ValueError:
        return None


def _rows(instruction) -> int:
    """Rows of the left operand that an instruction feeds: half precision is packed in pairs."""
    return 16 if ".bf16" in instruction and not re.search(r"\.8\b", instruction) else 8
