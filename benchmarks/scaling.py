"""How the time of one attention layer grows with tokens, landmarks and images per batch.

    python -m benchmarks.scaling

Three sweeps: each varies one size and keeps the others at `--fixed`. All arms of a size take turns
in one process (`evals.running.timing`). Over the tokens, `exponent` is the slope of log time
against log N from `--fit_from` tokens on (1 is linear, 2 quadratic), and `break_even_tokens` is
from where on an arm stays faster than the fastest exact attention. Arms "with projections" are
layers that come with them (`benchmarks.peers`).
"""

import numpy as np
import tqdm

from benchmarks import layer_tables, peers
from benchmarks.attention import jax_arms, layer_parser, measure, random_states
from benchmarks.plots import Panel, write_plot
from benchmarks.rows import parse, write_rows
from evals.jobs.speed import break_even
from fna_jax import select_landmarks

# Quadratic in memory, or, without sampling, no whole layer.
LEFT_OUT = ("exact, jax.nn", "FNA, landmarks given", "FNA, landmarks given, torch")
SIZES = ("tokens", "landmarks", "batch")


def main(argv=None):
    parser = layer_parser("scaling", repeats=5)
    tokens = [257, 513, 1025, 2049, 4097, 8193, 16385]
    parser.add_argument("--tokens", type=int, nargs="+", default=tokens)
    parser.add_argument("--landmarks", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--fixed", type=int, nargs=3, metavar=SIZES, default=[1025, 64, 1])
    parser.add_argument("--fit_from", type=int, default=1025, help="tokens")
    arguments = parse(parser, argv)
    rows = []
    for sweep, sizes in tqdm.tqdm(points(arguments), unit="size"):
        rows += [{"sweep": sweep} | row for row in measure_point(sizes, arguments)]
    over_tokens = [row for row in rows if row["sweep"] == "tokens"]
    found = laws(over_tokens, arguments.fit_from)
    rows = [row | (found[row["arm"]] if row["sweep"] == "tokens" else {}) for row in rows]
    write_rows(arguments.output, rows, **peers.versions())
    print(layer_tables.scaling(rows))
    panels = [Panel([row for row in rows if row["sweep"] == sweep], sweep) for sweep in SIZES]
    names = {arm: f"{arm}: N^{law['exponent']}" for arm, law in found.items() if law["exponent"]}
    write_plot(arguments.output, panels, names)


def points(arguments) -> list[tuple[str, dict]]:
    """The name of a sweep and the sizes of a point, for every point of every sweep."""
    fixed = dict(zip(SIZES, arguments.fixed))
    swept = [(name, size) for name in SIZES for size in getattr(arguments, name)]
    return [(name, fixed | {name: size}) for name, size in swept]


def measure_point(sizes, arguments) -> list[dict]:
    """One row per arm."""
    states = random_states(sizes["batch"], sizes["tokens"], arguments)
    indices = select_landmarks(states[-1], sizes["landmarks"]).indices
    compiled = jax_arms(*states, indices)
    eager = peers.attention_arms(*states, indices)
    eager |= peers.other_arms(*states, sizes["landmarks"])
    wanted = lambda arms: {name: arm for name, arm in arms.items() if name not in LEFT_OUT}
    return measure(wanted(compiled), wanted(eager), sizes, arguments)


def laws(rows, fit_from) -> dict[str, dict]:
    """Of each arm of the rows, which differ in the tokens: its exponent and its break-even."""
    times, fastest = {}, {}  # milliseconds by tokens: of each arm, and of exact attention
    for row in rows:
        arm, tokens, median = row["arm"], row["tokens"], row["median_ms"]
        times.setdefault(arm, {})[tokens] = median
        if arm.startswith("exact"):
            fastest[tokens] = min(median, fastest.get(tokens, median))
    return {
        arm: {
            "exponent": exponent({n: t for n, t in ms.items() if n >= fit_from}),
            "break_even_tokens": crossing(ms, fastest) if is_approximation(arm) else None,
        }
        for arm, ms in times.items()
    }


def is_approximation(arm) -> bool:
    """Whether an arm is another attention."""
    return not arm.startswith(("exact", "projections alone"))


def exponent(times) -> float | None:
    """The power of N that fits times by N best; None for fewer than two of them."""
    if len(times) < 2:
        return None
    return round(float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0]), 2)


def crossing(times, baseline) -> str:
    """The N from which on times by N stay below the baseline's, on lines between the points."""
    gains = {n: baseline[n] / time for n, time in times.items() if n in baseline}
    layers = [{"tokens": n, "speedup": {"arm": gain}} for n, gain in gains.items()]
    slower, faster = break_even(layers, "arm")
    if faster is None:
        return f"above {slower}"
    if slower is None:
        return f"below {faster}"
    ends = [slower, faster]
    log_gains = [np.log(gains[n]) for n in ends]  # from below zero to above
    return str(round(float(np.exp(np.interp(0, log_gains, np.log(ends))))))


if __name__ == "__main__":
    main()
