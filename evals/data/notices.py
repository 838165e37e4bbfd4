"""What is said beside the results, on stderr."""

import functools
import sys

import tqdm


def printable(value) -> str:
    """Text with a question mark for what cannot be printed: names of files may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in str(value))


@functools.cache
def say(text) -> None:
    """Prints a line, above a progress bar, and once however often the same data are read."""
    tqdm.tqdm.write(printable(text), file=sys.stderr)
