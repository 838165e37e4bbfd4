"""Result files: rows of numbers, each with the command, device and versions that made it."""

import csv
import io
import pathlib

from evals.workdir import environment, write_atomically


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
