"""Result files: rows of numbers, each with the command, device and versions that made it."""

import argparse
import csv
import io
import os
import pathlib
import sys

import numpy as np

from evals.running.workdir import ROOT, environment, write_atomically

_BUSY = 0.5  # processes that ran on average in the last minute


def benchmark_parser(name, *, repeats=None):
    """The options of a benchmark that writes `results/NAME.csv`; `repeats` where it times arms."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    if repeats is not None:
        parser.add_argument("--repeats", type=int, default=repeats, help="timed rounds")
    parser.add_argument("--output", default=str(ROOT / "results" / f"{name}.csv"))
    return parser


def parse(parser, argv):
    """The options; on a machine that is busy already, a warning on stderr."""
    arguments = parser.parse_args(argv)
    if (load := os.getloadavg()[0]) > _BUSY:
        print(f"the machine is busy (load {load:.1f}): times will mean little", file=sys.stderr)
    return arguments


def matching(match, items, *, kind, name_of) -> list:
    """The items with `match` in their names; exits, telling all names, where there is none."""
    names = dict.fromkeys(map(name_of, items))
    if not any(match in name for name in names):
        sys.exit(f"no {kind} has {match!r} in its name; there are {'; '.join(names)}")
    return [item for item in items if match in name_of(item)]


def timing_columns(timing, *, compiled) -> dict:
    """Milliseconds of the median run and of the quartiles; seconds to compile if that was done."""
    low, median, high = np.round(1000 * np.quantile(timing.seconds, [0.25, 0.5, 0.75]), 3)
    columns = {"median_ms": median, "quartile_1_ms": low, "quartile_3_ms": high}
    return columns | ({"compile_s": round(timing.compile_seconds, 2)} if compiled else {})


def read_rows(file) -> list[dict]:
    """The rows of a result file, all texts."""
    with open(file, newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def write_rows(output, rows, **versions) -> str:
    """Writes rows as CSV to the file `output`, whole or not at all; the text.

    Args:
      output: a path; its folder is made if need be.
      rows: dictionaries; a field that a row lacks stays empty.
      **versions: of further libraries that took part.
    """
    fixed = environment() | versions
    out = io.StringIO()
    fields = dict.fromkeys([field for row in rows for field in row] + [*fixed])
    writer = csv.DictWriter(out, list(fields), lineterminator="\n")
    writer.writeheader()
    writer.writerows(fixed | row for row in rows)  # a row of an earlier run keeps its own
    output = pathlib.Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, out.getvalue())
    return out.getvalue()
