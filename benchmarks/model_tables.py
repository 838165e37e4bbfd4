"""The pages' tables of whole models, from the rows of result files.

What a file does not have is left empty. `python -m benchmarks.tables` prints them.
"""

from benchmarks.cells import milliseconds, ratio, spread
from evals.jobs.tables import markdown_table

_LANGUAGE = {  # columns of results/language_cost.csv, their headings and decimals
    "attention_percent": ("attention, % of prefill", 1),
    "most_prefill_speedup": ("prefill at most times faster", 2),
    "weights_gb": ("weights, GB", 1),
    "cache_gb": ("cache, GB", 2),
    "cache_percent": ("cache, % of what a token reads", 1),
    "landmark_cache_gb": ("with landmarks, GB", 2),
    "times_fewer_bytes": ("times less to read", 2),
}
_PREFILL = {  # further columns
    "prefill_tera_multiply_adds": ("exact prefill, 10¹² multiply-adds", 1),
    "fna_prefill_speedup": ("FNA, times fewer", 2),
    "runs_prefill_speedup": ("centroid, runs, times fewer", 2),
    "dropping_prefill_speedup": ("half of the tokens, times fewer", 2),
    "dropping_cache_gb": ("half of the tokens, cache, GB", 2),
    "dropping_times_fewer_bytes": ("times less to read", 2),
}
_FASTER = ("FNA", "centroid", "centroid, all blocks", "token merging")  # of results/models.csv
_PAIR = ("first half of the blocks", "second half", "class token error", "patch error")
_PAIR += ("ms", "times exact", "by counting")


def models(rows) -> str:
    """Times faster than exact, and in brackets by counting: a line for each model and size."""
    lines = []
    for size, found in _of_sizes(rows):
        torch = ratio(found.get("exact, Hugging Face", {}).get("speedup"), 2)
        cells = [milliseconds(found["exact"].get("median_ms")), _share(found.get("no attention"))]
        lines.append([*size, *cells, torch, *(_gain(found.get(arm)) for arm in _FASTER)])
    headings = ["model", "tokens", "exact, ms", "of that attention", "exact, PyTorch"]
    return markdown_table([*headings, *_FASTER], lines)


def models_memory(rows) -> str:
    """Peak memory of whole models by the compiler's account: a line for each model and size."""
    arms = ["exact", *_FASTER]
    lines = [
        [*size, *(milliseconds(found[arm]["compiled_mb"]) for arm in arms)]
        for size, found in _of_sizes(row for row in rows if row.get("compiled_mb"))
    ]
    return markdown_table(["model", "tokens", *(f"{arm}, MB" for arm in arms)], lines)


def gpu_towers(rows) -> str:
    """Milliseconds of whole towers on a GPU: a line for each arm."""
    lines = [
        [f"{row['model']}, {row['pixels']} px, {row['dtype']}: {row['arm']}"]
        + [milliseconds(row["median_ms"]), ratio(row["times_exact"], 2)]
        + [ratio(row.get("counted_times_exact"), 2), milliseconds(row.get("temporary_mb"))]
        for row in rows
        if row["part"] == "tower"
    ]
    columns = ["model", "ms", "times faster than exact", "by counting", "temporary MB"]
    return markdown_table(columns, lines)


def tpu_towers(rows) -> str:
    """Estimated milliseconds of whole towers on a TPU v5e: a line for each that is complete."""
    arms = ("exact", "FNA", "centroid", "centroid, all blocks")
    by_tower = {}
    for row in rows:
        tower, is_tower, arm = row["arm"].partition(" px: ")
        if is_tower and row["estimate_us"]:
            by_tower.setdefault(f"{tower} px", {})[arm] = float(row["estimate_us"]) / 1e3
    lines = [
        [tower, milliseconds(times["exact"])]
        + [ratio(times["exact"] / times[arm], 2) for arm in arms[1:]]
        for tower, times in by_tower.items()
        if times.keys() >= set(arms)
    ]
    heading = ["model", "exact, ms", *(f"{arm}, times faster" for arm in arms[1:])]
    return markdown_table(heading, lines)


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
        cells = [f"{patches:,}", ratio(exact["gmacs"], 0)]
        cells.append(ratio(100 * float(exact["attention_share"]), 0))
        cells += [ratio(of_arms[arm]["times_less"], 2) for arm in arms[1:]]
        lines.append([*cells, ratio(largest / 1e3, 2), ratio(exact["matrix_gb"], 2)])
    heading = ["patches", "exact, GMAC", "attention's share, %"]
    heading += [f"{arm}, times less" for arm in arms[1:]]
    return markdown_table([*heading, "temporaries, at most GB", "one matrix, GB"], lines)


def vjepa2(rows) -> str:
    """What V-JEPA 2's blocks compute for a video, counted: a line for each encoder."""
    by_model = {}
    for row in rows:
        by_model.setdefault(row["model"], {})[row["arm"]] = row
    lines = []
    for model, of_arms in by_model.items():
        exact, *others = of_arms.values()
        cells = [f"{int(exact['tokens']):,}", ratio(exact["gmacs"], 0)]
        cells.append(ratio(100 * float(exact["attention_share"]), 0))
        cells += [ratio(row["times_less"], 2) for row in others]
        lines.append([model, *cells, ratio(exact["matrix_gb"], 1)])
    arms = [f"{arm}, times less" for arm in [*of_arms][1:]]
    heading = ["model", "tokens", "exact, GMAC", "attention's share, %", *arms]
    return markdown_table([*heading, "one matrix, GB"], lines)


def language_cost(rows) -> str:
    """Where a language model's time goes: a line for each model and number of tokens."""
    return _of_language_models(rows, _LANGUAGE)


def language_prefill(rows) -> str:
    """What other ways to read a prompt cost: a line for each model and number of tokens."""
    return _of_language_models(rows, _PREFILL)


def _of_language_models(rows, columns):
    lines = [
        [row["model"], f"{int(row['tokens']):,}"]
        + [ratio(row[column], digits) for column, (_, digits) in columns.items()]
        for row in rows
    ]
    headings = [heading for heading, _ in columns.values()]
    return markdown_table(["language model of", "tokens", *headings], lines)


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


def waterfall(rows) -> str:
    """What each step does to a real model's time and output."""
    lines = []
    for row in rows:
        errors = [spread(row, field) for field in ("class_token_error", "patch_error")]
        times = [ratio(row[column], 2) for column in ("times_before", "times_first")]
        cells = [row["blocks"], *errors, milliseconds(row["median_ms"]), *times]
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
    return f"{ratio(row.get('speedup'), 2)} ({ratio(row['counted_speedup'], 2)})".strip()


def _share(row):
    """Attention's, by the time without it, and in brackets by counting."""
    if row is None:
        return ""
    gains = [row[column] for column in ("speedup", "counted_speedup") if row.get(column)]
    *measured, counted = (f"{100 - 100 / float(gain):.0f} %" for gain in gains)
    return " ".join([*measured, f"({counted})"])


def _of_pair(row):
    errors = [spread(row, field) for field in ("class_token_error", "patch_error")]
    speeds = [ratio(row[field], 2) for field in ("speedup", "counted_speedup")]
    return [row["first"], row["second"], *errors, milliseconds(row["median_ms"]), *speeds]
