"""The pages' tables of speed and memory, from the committed result files.

    python -m benchmarks.tables

What a file does not have is left out, or left empty.
"""

from benchmarks.rows import read_rows
from evals.jobs.tables import markdown_table
from evals.running.workdir import ROOT

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
_LANGUAGE = {  # columns of results/language_cost.csv, their headings and decimals
    "attention_percent": ("attention, % of prefill", 1),
    "most_prefill_speedup": ("prefill at most times faster", 2),
    "weights_gb": ("weights, GB", 1),
    "cache_gb": ("cache, GB", 2),
    "cache_percent": ("cache, % of what a token reads", 1),
    "landmark_cache_gb": ("with landmarks, GB", 2),
    "times_fewer_bytes": ("times less to read", 2),
}
_FASTER = ("FNA", "centroid", "centroid, all blocks", "token merging")  # of results/models.csv
_PAIR = ("first half of the blocks", "second half", "class token error", "patch error")
_PAIR += ("ms", "times exact", "by counting")


def main():
    for table in (
        attention,
        centroids,
        equal_error,
        gpu,
        gpu_towers,
        landmarks,
        language_cost,
        models,
        models_memory,
        memory,
        recommended,
        scaling,
        sharding,
        tpu,
        waterfall,
    ):
        name = table.__name__.removesuffix("_towers").removesuffix("_memory")
        file = ROOT / "results" / f"{name}.csv"
        if file.exists():
            print(f"{file.relative_to(ROOT)}\n\n{table(read_rows(file))}\n")


def attention(rows) -> str:
    """Milliseconds of one layer: a line for each number of tokens, a column for each arm."""
    arms = [arm for arm in _LAYER if any(row["arm"] == arm for row in rows)]
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        found = {row["arm"]: row["median_ms"] for row in rows if row["tokens"] == tokens}
        lines.append([f"{int(tokens):,}"] + [_milliseconds(found.get(arm)) for arm in arms])
    return markdown_table(["tokens", *(_LAYER[arm] for arm in arms)], lines)


def centroids(rows) -> str:
    """Milliseconds of one layer, and over FNA's: a line for each size and arm."""
    lines = [
        [f"{int(row['tokens']):,}", str(row["landmarks"]), row["arm"]]
        + [_milliseconds(row["median_ms"]), _ratio(row.get("times_fna"), 2)]
        for row in rows
    ]
    return markdown_table(["tokens", "S", "attention", "ms", "times FNA's"], lines)


def equal_error(rows) -> str:
    """Centroid attention in a layer, and how its time compares with FNA's of the same error."""
    lines = []
    for row in rows:
        ratios = [_ratio(row.get(f"times_{other}"), 2) for other in ("fna", "torch")]
        lines.append(
            [f"{int(row['tokens']):,}", row["arm"], _ratio(row["error"], 3)]
            + [_milliseconds(row["median_ms"]), *ratios]
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
        cells = [_ratio(found.get(arm), 2) for arm in arms]
        lines.append([dtype, f"{int(tokens):,}", batch, *cells])
    return markdown_table(["dtype", "tokens", "images", *(_GPU[arm] for arm in arms)], lines)


def gpu_towers(rows) -> str:
    """Milliseconds of whole towers on a GPU: a line for each arm."""
    lines = [
        [f"{row['model']}, {row['pixels']} px, {row['dtype']}: {row['arm']}"]
        + [_milliseconds(row["median_ms"]), _ratio(row["times_exact"], 2)]
        + [_ratio(row.get("counted_times_exact"), 2), _milliseconds(row.get("temporary_mb"))]
        for row in rows
        if row["part"] == "tower"
    ]
    columns = ["model", "ms", "times faster than exact", "by counting", "temporary MB"]
    return markdown_table(columns, lines)


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
        times = [row["estimate_us"] or row["compiles"].split(":")[0] for row in mine]
        lines.append([f"{int(tokens):,}", *map(_microseconds, times)])
        lines[-1].append(_microseconds(mine[0]["floor_us"]))
    return markdown_table(["tokens", *_TPU.values(), "arguments and results alone"], lines)


def _microseconds(text):
    """Without decimals; what is no number, as it is."""
    return f"{float(text):,.0f}" if text[:1].isdigit() else text


def landmarks(rows) -> str:
    """Milliseconds of the choice of landmarks: a line for each size, ours beside the peer's."""
    lines = []
    for tokens, features in dict.fromkeys((row["tokens"], row["features"]) for row in rows):
        ours, *peer = (x for x in rows if (x["tokens"], x["features"]) == (tokens, features))
        peer = peer[0] if peer else {}
        cells = [f"{int(tokens):,}", f"{int(features):,}", _milliseconds(ours["median_ms"])]
        cells += [_milliseconds(peer.get("median_ms")), _ratio(peer.get("times_faster"), 1)]
        lines.append(cells)
    return markdown_table(["tokens", "features", "ms", "torch-quickfps", "times faster"], lines)


def language_cost(rows) -> str:
    """Where a language model's time goes: a line for each model and number of tokens."""
    lines = [
        [row["model"], f"{int(row['tokens']):,}"]
        + [_ratio(row[column], digits) for column, (_, digits) in _LANGUAGE.items()]
        for row in rows
    ]
    headings = [heading for heading, _ in _LANGUAGE.values()]
    return markdown_table(["language model of", "tokens", *headings], lines)


def models(rows) -> str:
    """Times faster than exact, and in brackets by counting: a line for each model and size."""
    lines = []
    for size, found in _of_sizes(rows):
        torch = _ratio(found.get("exact, Hugging Face", {}).get("speedup"), 2)
        cells = [_milliseconds(found["exact"].get("median_ms")), _share(found.get("no attention"))]
        lines.append([*size, *cells, torch, *(_gain(found.get(arm)) for arm in _FASTER)])
    headings = ["model", "tokens", "exact, ms", "of that attention", "exact, PyTorch"]
    return markdown_table([*headings, *_FASTER], lines)


def models_memory(rows) -> str:
    """Peak memory of whole models by the compiler's account: a line for each model and size."""
    arms = ["exact", *_FASTER]
    lines = [
        [*size, *(_milliseconds(found[arm]["compiled_mb"]) for arm in arms)]
        for size, found in _of_sizes(row for row in rows if row.get("compiled_mb"))
    ]
    return markdown_table(["model", "tokens", *(f"{arm}, MB" for arm in arms)], lines)


def memory(rows) -> str:
    """Peak memory of a layer over the size of query, key, value and output."""
    measures = ("compiled", "resident")
    lines = [
        [row["arm"], f"{int(row['tokens']):,}", f"{float(row['states_mb']):,.0f}"]
        + [_ratio(row.get(f"{measure}_over_states"), 2) for measure in measures]
        for row in rows
    ]
    return markdown_table(["attention", "tokens", "q, k, v, output, MB", *measures], lines)


def qwen_tower(rows) -> str:
    """What Qwen3-VL's tower takes at each size, by counting and compiling: a line for each."""
    arms = ("exact", "FNA", "centroid", "centroid, near field")
    by_size = {}
    for row in rows:
        by_size.setdefault(int(row["patches"]), {})[row["arm"]] = row
    lines = []
    for patches, of_arms in by_size.items():
        if not of_arms.keys() >= set(arms):
            continue  # of a run that was cut off
        exact = of_arms["exact"]
        largest = max(float(of_arms[arm]["block_temporaries_mb"]) for arm in arms)
        cells = [f"{patches:,}", _ratio(exact["gmacs"], 0)]
        cells.append(_ratio(100 * float(exact["attention_share"]), 0))
        cells += [_ratio(of_arms[arm]["times_less"], 2) for arm in arms[1:]]
        lines.append([*cells, _ratio(largest / 1e3, 2), _ratio(exact["matrix_gb"], 2)])
    heading = ["patches", "exact, GMAC", "attention's share, %"]
    heading += [f"{arm}, times less" for arm in arms[1:]]
    return markdown_table([*heading, "temporaries, at most GB", "one matrix, GB"], lines)


def recommended(rows) -> str:
    """What was chosen on some photographs for each ceiling of the error, shown on others."""
    lines = [
        [f"{int(row['tokens']):,}", row["below"], *_of_pair(row)]
        for row in rows
        if row["half"] == "report"
    ]
    return markdown_table(["tokens", "chosen for an error of", *_PAIR], lines)


def candidates(rows) -> str:
    """What that was chosen among: attentions in one half of the blocks."""
    lines = [[f"{int(row['tokens']):,}", *_of_pair(row)] for row in rows if row["half"] == "choose"]
    return markdown_table(["tokens", *_PAIR], lines)


def scaling(rows) -> str:
    """Of each arm the power of N that its time grows with, and from where on it is faster."""
    laws = {row["arm"]: row for row in rows if row["sweep"] == "tokens"}
    lines = [
        [arm, _ratio(row.get("exponent"), 2), str(row.get("break_even_tokens") or "")]
        for arm, row in laws.items()
    ]
    return markdown_table(["attention", "exponent of N", "faster than exact from N ="], lines)


def sharding(rows) -> str:
    """What one device computes, holds and is sent: a line for each S and number of devices."""
    lines = [
        [_ratio(row[column], digits) for column, (_, digits) in _SHARDING.items()]
        for row in rows
        if int(row["devices"]) > 1
    ]
    return markdown_table([heading for heading, _ in _SHARDING.values()], lines)


def waterfall(rows) -> str:
    """What each step does to a real model's time and output."""
    lines = []
    for row in rows:
        errors = [_spread(row, field) for field in ("class_token_error", "patch_error")]
        times = [_ratio(row[column], 2) for column in ("times_before", "times_first")]
        cells = [row["blocks"], *errors, _milliseconds(row["median_ms"]), *times]
        lines.append([row["step"], *cells])
    headings = ["step", "blocks", "class token error", "patch error", "ms"]
    return markdown_table([*headings, "times the step before", "times the first"], lines)


def _of_sizes(rows):
    """Of results/models.csv each model and size as cells, and its rows by arm."""
    found = {}
    for row in rows:
        size = f"{row['model']}, {row['pixels']} px", f"{int(row['tokens']):,}"
        found.setdefault(size, {})[row["arm"]] = row
    return found.items()


def _gain(row):
    """Times faster than exact, and in brackets by counting; that alone where nothing ran."""
    if row is None:
        return ""
    return f"{_ratio(row.get('speedup'), 2)} ({_ratio(row['counted_speedup'], 2)})".strip()


def _share(row):
    """Attention's, by the time without it, and in brackets by counting."""
    if row is None:
        return ""
    gains = [row[column] for column in ("speedup", "counted_speedup") if row.get(column)]
    *measured, counted = (f"{100 - 100 / float(gain):.0f} %" for gain in gains)
    return " ".join([*measured, f"({counted})"])


def _of_pair(row):
    errors = [_spread(row, field) for field in ("class_token_error", "patch_error")]
    speeds = [_ratio(row[field], 2) for field in ("speedup", "counted_speedup")]
    return [row["first"], row["second"], *errors, _milliseconds(row["median_ms"]), *speeds]


def _spread(row, field):
    mean, spread = _ratio(row.get(field), 3), _ratio(row.get(f"{field}_spread"), 3)
    return f"{mean} ± {spread}" if spread else mean


def _milliseconds(value):
    if value in (None, ""):
        return ""
    return f"{float(value):,.1f}" if float(value) < 10 else f"{float(value):,.0f}"


def _ratio(value, digits):
    return "" if value in (None, "") else f"{float(value):,.{digits}f}"


if __name__ == "__main__":
    main()
