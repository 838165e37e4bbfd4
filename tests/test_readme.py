"""The README's code runs as it stands."""

import csv
import json
import pathlib
import re

import pytest

import models
from benchmarks import tables, zoo
from benchmarks.rows import read_rows
from evals.jobs.evaluate.report import format_table
from evals.jobs.masking.report import format_masking
from evals.jobs.pretrained.report import format_table as format_pretrained
from evals.jobs.sweep.report import format_sweep

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n")[0] for block in BLOCKS])
def test_code_runs(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(block, {})


def test_there_are_blocks_and_linked_files_exist():
    assert len(BLOCKS) == 6
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if link.startswith("#"):
            assert f"\n## {link[1:].replace('-', ' ')}\n" in README.lower(), link
        else:
            assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_speed_table_tells_the_committed_medians():
    heading, _, *lines = tables.attention(read_rows(ROOT / "results" / "attention.csv")).split("\n")
    for line in (heading, *lines):
        assert line in README


def test_the_table_of_whole_models_tells_the_committed_medians():
    assert tables.models(read_rows(ROOT / "results" / "models.csv")) in README


@pytest.mark.parametrize(
    "folder, file, table",
    [
        ("pretrained", "pretrained.json", format_pretrained),
        ("digit_scenes_classification", "results.json", format_table),
        ("digit_scenes_segmentation", "results.json", format_table),
        ("digit_scenes_sweep", "sweep.json", format_sweep),
        ("digit_scenes_masking", "masking.json", format_masking),
    ],
)
def test_the_table_of_a_run_tells_the_committed_results(folder, file, table):
    results = json.loads((ROOT / "results" / folder / file).read_text())
    assert table(results["table"]) in README


def test_the_table_of_many_devices_tells_the_committed_counts():
    with open(ROOT / "results" / "sharding.csv") as file:
        rows = list(csv.DictReader(file))
    text = lambda gmacs: f"{gmacs:,.1f}" if gmacs < 10 else f"{gmacs:,.0f}"
    for row in rows:
        if row["landmarks"] == "256" or row["devices"] == "1":
            continue
        cells = [f"{int(row['landmarks']):,}", row["devices"], text(float(row["exact_gmacs"]))]
        cells += [text(float(row["fna_gmacs"])), row["qkvo_gb"], row["communicated_mb"]]
        line = f"| {' | '.join(cells)} | {int(row['messages']):,} |"
        assert line in README


def test_the_table_of_the_zoo_tells_the_committed_errors():
    rows = read_rows(ROOT / "results" / "zoo.csv")
    assert zoo.as_markdown(rows) in README
    named = {name for row in rows for name in row["models"].split()}
    assert named == set(models.list_models())


def test_the_peak_of_conversion_is_the_committed_one():
    with open(ROOT / "results" / "conversion.csv") as file:
        peak = next(csv.DictReader(file))["peak_over_file"]
    assert f"takes {peak} times its size" in README
