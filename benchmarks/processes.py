"""Time and memory of a program in a process of its own."""

import subprocess
import sys
import time

from evals.running.workdir import ROOT

# Linux counts the memory of the process that starts another as the other's peak: start it from a
# small one.
LAUNCHER = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run_measured(*arguments) -> tuple[float, int]:
    """Seconds, and the most bytes resident at once, of Python with these arguments in the checkout.

    Raises:
      subprocess.CalledProcessError: the program failed.
    """
    start = time.perf_counter()
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return time.perf_counter() - start, 1024 * int(launched.stdout)
