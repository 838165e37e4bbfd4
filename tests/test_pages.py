"""README.md and docs/: code runs, commands and links exist, numbers are the committed ones."""

import importlib.util
import re
import shlex

import pytest

import convert.__main__
import models
from benchmarks import layer_tables, model_tables, zoo
from evals.jobs.arms import METHOD_NAMES
from evals.jobs.evaluate.report import format_table
from evals.jobs.masking.report import format_masking
from evals.jobs.pretrained.report import format_table as format_pretrained
from evals.jobs.sweep.report import format_sweep
from evals.jobs.vqa.report import format_table as format_answers
from evals.running.overrides import load_config
from tests.benchmarks.test_tables import BENCHMARKS
from tests.conftest import few
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
from tests.sentences import PRETRAINED, rows, run, sentences

PIXELS = 518  # of the README's table of the real model
SNIPPETS = snippets()


@pytest.mark.parametrize("name", few(SNIPPETS, [n for n in SNIPPETS if "README" in n]))
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


TABLES = {  # each as the committed results make it
    "pretrained": lambda: format_pretrained(run(*PRETRAINED)["table"]),
    "embedded": lambda: format_table(run("digit_scenes")["table"]),
    "classification": lambda: format_table(run("digit_scenes_classification")["table"]),
    "segmentation": lambda: format_table(run("digit_scenes_segmentation")["table"]),
    "sweep": lambda: format_sweep(run("digit_scenes_sweep", "sweep.json")["table"]),
    "masking": lambda: format_masking(run("digit_scenes_masking", "masking.json")["table"]),
    "answers": lambda: format_answers(run("vqa_digits")["table"]),
    "attention": lambda: layer_tables.attention(rows("attention")),
    "language_cost": lambda: model_tables.language_cost(rows("language_cost")),
    "language_prefill": lambda: model_tables.language_prefill(rows("language_cost")),
    "models": lambda: model_tables.models(rows("models")),
    "models_memory": lambda: model_tables.models_memory(rows("models")),
    "waterfall": lambda: model_tables.waterfall(rows("waterfall")),
    "recommended": lambda: model_tables.recommended(rows("recommended")),
    "equal_error": lambda: layer_tables.equal_error(rows("equal_error")),
    "sharding": lambda: layer_tables.sharding(rows("sharding")),
    "gpu": lambda: layer_tables.gpu(rows("gpu")),
    "gpu_towers": lambda: model_tables.gpu_towers(rows("gpu")),
    "tpu": lambda: layer_tables.tpu(rows("tpu")),
    "tpu_towers": lambda: model_tables.tpu_towers(rows("tpu")),
    "vjepa2": lambda: model_tables.vjepa2(rows("vjepa2")),
    "qwen_tower": lambda: model_tables.qwen_tower(rows("qwen_tower")),
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


@pytest.mark.parametrize("sentence", sentences())
def test_a_sentence_tells_the_committed_figures(sentence):
    assert sentence in words()


def test_fewer_clusters_are_more_accurate_than_more_landmarks():
    assert "32 clusters are more accurate than 64 landmarks" in words()
    table = run(*PRETRAINED)["table"]
    found = {(row["method"], row["num_landmarks"]): row for row in table if row["px"] == PIXELS}
    for error in ("class token error", "patch error"):
        assert found["centroid", 32][error] < found["fps", 64][error]
