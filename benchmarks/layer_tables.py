"""The pages' tables of single layers of attention, from the rows of result files.

What a file does not have is left out, or left empty. `python -m benchmarks.tables` prints them.
"""

from benchmarks.cells import milliseconds, ratio
from evals.jobs.tables import markdown_table

_LAYER = {  # arms of results/attention.csv, and what the table calls them
    "exact": "exact, ms",
    "exact, torch": "exact, PyTorch",
    "FNA, q sampled": "FNA",
    "FNA, landmarks given": "FNA, landmarks given",
    "FNA, landmarks given, torch": "FNA, landmarks given, PyTorch",
    "FNA, input sampled": "FNA, input sampled",
    "FNA, input sampled, torch with quickfps": "FNA, input sampled, PyTorch",
}
_GPU = {  # arms of results/gpu.csv
    "exact": "exact, ms",
    "exact, torch": "exact, PyTorch",
    "exact, xla": "exact, XLA alone",
    "FNA, q sampled": "FNA",
    "FNA, landmarks given": "FNA, landmarks given",
    "FNA, landmarks given, xla": "FNA, landmarks given, XLA alone",
    "FNA, landmarks given, torch": "FNA, landmarks given, PyTorch",
    "centroid, k-means from windows": "centroid",
    "centroid, k-means, near field": "centroid, near field",
}
_SHARDING = {  # columns of results/sharding.csv, their headings and decimals
    "landmarks": ("S", 0),
    "devices": ("devices", 0),
    "exact_gmacs": ("exact, giga multiply-adds", 0),
    "fna_gmacs": ("FNA", 1),
    "centroid_gmacs": ("centroid", 1),
    "qkvo_gb": ("query, key, value, output, GB", 3),
    "communicated_mb": ("FNA, MB communicated", 2),
    "messages": ("FNA, messages", 0),
    "centroid_mb": ("centroid, MB communicated", 2),
    "centroid_messages": ("centroid, messages", 0),
}
_TPU = {  # arms of results/tpu.csv
    "exact": "exact, µs",
    "exact, jax.nn": "jax.nn",
    "exact, Pallas flash": "jax's Pallas flash",
    "FNA, landmarks given": "FNA, landmarks given",
    "FNA, q sampled": "FNA",
    "centroids, k-means": "centroids, k-means",
    "centroids, k-means, near own": "with a near field",
}


def attention(rows) -> str:
    """Milliseconds of one layer: a line for each number of tokens, a column for each arm."""
    arms = [arm for arm in _LAYER if any(row["arm"] == arm for row in rows)]
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        found = {row["arm"]: row["median_ms"] for row in rows if row["tokens"] == tokens}
        lines.append([f"{int(tokens):,}"] + [milliseconds(found.get(arm)) for arm in arms])
    return markdown_table(["tokens", *(_LAYER[arm] for arm in arms)], lines)


def centroids(rows) -> str:
    """Milliseconds of one layer, and over FNA's: a line for each size and arm."""
    lines = [
        [f"{int(row['tokens']):,}", str(row["landmarks"]), row["arm"]]
        + [milliseconds(row["median_ms"]), ratio(row.get("times_fna"), 2)]
        for row in rows
    ]
    return markdown_table(["tokens", "S", "attention", "ms", "times FNA's"], lines)


def equal_error(rows) -> str:
    """Centroid attention in a layer, and how its time compares with FNA's of the same error."""
    lines = []
    for row in rows:
        ratios = [ratio(row.get(f"times_{other}"), 2) for other in ("fna", "torch")]
        lines.append(
            [f"{int(row['tokens']):,}", row["arm"], ratio(row["error"], 3)]
            + [milliseconds(row["median_ms"]), *ratios]
        )
    headings = ["tokens", "attention", "layer error", "ms", "times FNA's", "times PyTorch's"]
    return markdown_table(headings, lines)


def gpu(rows) -> str:
    """Milliseconds of one layer on a GPU: a line for each dtype and size, a column for each arm."""
    rows = [row for row in rows if row["part"] == "layer"]
    arms = [arm for arm in _GPU if any(row["arm"] == arm for row in rows)]
    lines = []
    for size in dict.fromkeys((row["dtype"], row["tokens"], row["batch"]) for row in rows):
        dtype, tokens, batch = size
        mine = (row for row in rows if (row["dtype"], row["tokens"], row["batch"]) == size)
        found = {row["arm"]: row["median_ms"] for row in mine}
        cells = [ratio(found.get(arm), 2) for arm in arms]
        lines.append([dtype, f"{int(tokens):,}", batch, *cells])
    return markdown_table(["dtype", "tokens", "images", *(_GPU[arm] for arm in arms)], lines)


def landmarks(rows) -> str:
    """Milliseconds of the choice of landmarks: a line for each size, ours beside the peer's."""
    lines = []
    for tokens, features in dict.fromkeys((row["tokens"], row["features"]) for row in rows):
        ours, *peer = (x for x in rows if (x["tokens"], x["features"]) == (tokens, features))
        peer = peer[0] if peer else {}
        cells = [f"{int(tokens):,}", f"{int(features):,}", milliseconds(ours["median_ms"])]
        cells += [milliseconds(peer.get("median_ms")), ratio(peer.get("times_faster"), 1)]
        lines.append(cells)
    return markdown_table(["tokens", "features", "ms", "torch-quickfps", "times faster"], lines)


def memory(rows) -> str:
    """Peak memory of a layer over the size of query, key, value and output."""
    measures = ("compiled", "resident")
    lines = [
        [row["arm"], f"{int(row['tokens']):,}", f"{float(row['states_mb']):,.0f}"]
        + [ratio(row.get(f"{measure}_over_states"), 2) for measure in measures]
        for row in rows
    ]
    return markdown_table(["attention", "tokens", "q, k, v, output, MB", *measures], lines)


def scaling(rows) -> str:
    """Of each arm the power of N that its time grows with, and from where on it is faster."""
    laws = {row["arm"]: row for row in rows if row["sweep"] == "tokens"}
    lines = [
        [arm, ratio(row.get("exponent"), 2), str(row.get("break_even_tokens") or "")]
        for arm, row in laws.items()
    ]
    return markdown_table(["attention", "exponent of N", "faster than exact from N ="], lines)


def sharding(rows) -> str:
    """What one device computes, holds and is sent: a line for each S and number of devices."""
    lines = [
        [ratio(row[column], digits) for column, (_, digits) in _SHARDING.items()]
        for row in rows
        if int(row["devices"]) > 1
    ]
    return markdown_table([heading for heading, _ in _SHARDING.values()], lines)


def tpu(rows) -> str:
    """Estimated microseconds of one layer on a TPU v5e: a line for each size that is complete."""
    shown = ("v5e", "64", "bfloat16")
    rows = [row for row in rows if (row["chip"], row["landmarks"], row["dtype"]) == shown]
    found = {(row["tokens"], row["arm"]): row for row in rows}
    lines = []
    for tokens in dict.fromkeys(tokens for tokens, _ in found):
        if not found.keys() >= {(tokens, arm) for arm in _TPU}:
            continue
        mine = [found[tokens, arm] for arm in _TPU]
        lines.append([f"{int(tokens):,}", *map(_estimate, mine)])
        lines[-1].append(_microseconds(mine[0]["floor_us"]))
    return markdown_table(["tokens", *_TPU.values(), "arguments and results alone"], lines)


def _estimate(row):
    """In microseconds, or why there is none."""
    if row["estimate_us"]:
        return _microseconds(row["estimate_us"])
    error = row["compiles"].split(":")[0]
    return "out of memory" if error == "RESOURCE_EXHAUSTED" else error


def _microseconds(text):
    """Without decimals."""
    return f"{float(text):,.0f}"
