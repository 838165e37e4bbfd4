"""Fair times: arms in turns of random order, after a warm-up, compilation apart."""

import dataclasses
import sys
import time

import numpy as np
import tqdm


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one arm: seconds of its runs, and how much longer the first one took, which compiles."""

    seconds: np.ndarray
    compile_seconds: float

    @property
    def median(self) -> float:
        """Seconds of the median run."""
        return float(np.median(self.seconds))

    def speedup(self, baseline: "Timing") -> float:
        """How many times faster than `baseline`: the median over rounds, which noise hits alike."""
        return float(np.median(baseline.seconds / self.seconds))


def time_in_turns(arms, *, repeats, settle=0.0, progress=None) -> dict[str, Timing]:
    """Times of functions without arguments that return when their work is done.

    An arm that raises RuntimeError, as JAX and PyTorch do when memory runs out or a device cannot
    compute in a dtype, is left out, and said so on stderr.

    Args:
      arms: functions by name.
      repeats: timed rounds; in each all arms run once, in another order, for an arm runs slower
        after one that fills the memory. 0 for functions that take long and are compiled already:
        the time is that of their first run, without a warm-up.
      settle: seconds of busy waiting before each run, until threads of the last one rest.
      progress: what a bar calls the rounds; None for no bar.
    """
    first = {}
    for name, run in arms.items():
        start = time.perf_counter()
        try:
            run()
        except RuntimeError as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        first[name] = time.perf_counter() - start
    if not repeats:
        return {name: Timing(np.array([took]), 0.0) for name, took in first.items()}
    seconds = {name: [] for name in first}
    order = np.random.default_rng(0)
    rounds = tqdm.trange(
        repeats + 1, desc=progress, disable=progress is None, leave=False, mininterval=1
    )
    for number in rounds:
        for name in order.permutation(list(first)):
            rest = time.perf_counter() + settle
            while (start := time.perf_counter()) < rest:
                pass  # not time.sleep, after which a processor is slow
            arms[name]()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {
        name: Timing(np.array(times), max(first[name] - float(np.median(times)), 0.0))
        for name, times in seconds.items()
    }
