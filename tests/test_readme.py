"""The README's code runs as it stands."""

import csv
import pathlib
import re

import pytest

import models
from benchmarks import zoo

ROOT = pathlib.Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split("\n")[0] for block in BLOCKS])
def test_code_runs(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(block, {})


def test_there_are_blocks_and_linked_files_exist():
    assert len(BLOCKS) == 4
    for link in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_speed_table_tells_the_committed_medians():
    with open(ROOT / "results" / "attention.csv") as file:
        rows = list(csv.DictReader(file))
    text = lambda ms: f"{ms:,.1f}" if ms < 10 else f"{ms:,.0f}"
    for tokens in (257, 1025, 4097, 16385):
        median = {
            row["arm"].split(" 2.")[0]: text(float(row["median_ms"]))
            for row in rows
            if int(row["tokens"]) == tokens
        }
        cells = [median[arm] for arm in ("exact", "exact, torch", "FNA, q sampled")]
        assert f"| {tokens:,} | {' | '.join(cells)} |" in (ROOT / "README.md").read_text()


def test_the_table_of_the_zoo_tells_the_committed_errors():
    rows = zoo.read_rows()
    assert zoo.as_markdown(rows) in (ROOT / "README.md").read_text()
    named = {name for row in rows for name in row["models"].split()}
    assert named == set(models.list_models())


def test_the_peak_of_conversion_is_the_committed_one():
    with open(ROOT / "results" / "conversion.csv") as file:
        peak = next(csv.DictReader(file))["peak_over_file"]
    assert f"takes {peak} times its size" in (ROOT / "README.md").read_text()
