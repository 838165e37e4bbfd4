"""One attention layer: centroid attention beside FNA with as many landmarks as it has clusters.

    python -m benchmarks.centroids

Tokens are those of square grids of patches behind a class token, N = g² + 1, with random states, on
which the times do not depend. All arms of a size run in one process, in turns of random order.
"given" arms find their landmarks or clusters there; the others choose them within the time, as a
block of a model does: on the queries (FNA) or keys averaged over heads. `times_fna` is over FNA's
time in the same rounds, that of the arm with landmarks given or chosen likewise.
"""

import dataclasses
import functools

import jax
import tqdm

from benchmarks import attention, layer_tables
from benchmarks.plots import Panel, write_plot
from benchmarks.rows import parse, write_rows
from fna_jax import FNAConfig, select_landmarks
from fna_jax.layers import attend_in_layer, partition_in_layer

_FNA = "FNA, landmarks given", "FNA, q sampled"  # clusters are given or chosen likewise


def main(argv=None):
    parser = attention.layer_parser("centroids", repeats=5)
    parser.add_argument("--grids", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--landmarks", type=int, default=64, help="and clusters")
    parser.add_argument("--windows", type=int, default=64, help="of the near field, at most")
    parser.add_argument("--batch", type=int, default=1)
    arguments = parse(parser, argv)
    rows = []
    for side in tqdm.tqdm(arguments.grids, unit="size"):
        given, chosen = arms_of(side, arguments)
        fna_of = dict.fromkeys(given, _FNA[0]) | dict.fromkeys(chosen, _FNA[1])
        sizes = {"tokens": side**2 + 1, "batch": arguments.batch, "landmarks": arguments.landmarks}
        rows += attention.measure(given | chosen, {}, sizes, arguments, fna_of=fna_of)
    write_rows(arguments.output, rows)
    print(layer_tables.centroids(rows))
    write_plot(arguments.output, [Panel(rows, "tokens")])


def arms_of(side, arguments) -> tuple[dict, dict]:
    """Arms by name, as of `attention.jax_arms`: landmarks or clusters given, and chosen there."""
    *states, inputs = attention.random_states(arguments.batch, side**2 + 1, arguments)
    indices = select_landmarks(inputs, arguments.landmarks).indices
    of_layer = dict(grid=(side, side), num_prefix=1)
    settings = dict(features="k", approximation="centroid")
    config = FNAConfig((0,), arguments.landmarks, **settings)
    kmeans = dataclasses.replace(config, partition="kmeans")
    near = dataclasses.replace(config, windows=arguments.windows)
    clusters = partition_in_layer({"k": states[1]}, config, None, **of_layer)

    def attend(query, key, value, clusters, config):
        clusters = partition_in_layer({"k": key}, config, clusters, **of_layer)
        return attend_in_layer(query, key, value, clusters, config, **of_layer)

    def centroid(config, clusters=None):
        function = jax.jit(functools.partial(attend, config=config))
        return attention.blocking(function, *states, clusters)

    nystrom = attention.functions(arguments.landmarks)
    fna = [attention.blocking(jax.jit(nystrom[arm]), *states, inputs, indices) for arm in _FNA]
    exact = attention.blocking(jax.jit(nystrom["exact"]), *states)
    given = {
        "exact": exact,
        _FNA[0]: fna[0],
        "centroid, clusters given": centroid(config, clusters),
        "centroid, clusters given, near field": centroid(near, clusters),
    }
    chosen = {
        _FNA[1]: fna[1],
        "centroid, k-means from windows": centroid(kmeans),
        "centroid, farthest points": centroid(config),
    }
    return given, chosen


if __name__ == "__main__":
    main()
