"""What evaluations can be asked for has a test and a name, as CONTRIBUTING.md says."""

import ast
import json
import pathlib
import re

from evals.jobs.arms import INSTEAD, METHOD_NAMES, METHODS, settings_of
from evals.jobs.strategies import STRATEGIES
from evals.tasks.table import TASKS
from fna_jax import landmarks
from fna_jax.config import PARTITIONS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def test_every_task_has_a_test():
    imported = {
        alias.name
        for file in HERE.rglob("test_*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module.startswith("evals.tasks")
        for alias in node.names
    }
    assert len(TASKS) >= 7 and imported.issuperset(task.run.__name__ for task in TASKS.values())


def test_every_choice_of_landmarks_and_clusters_is_a_method_with_a_name():
    chosen = [settings_of(name, {}, layers=(0,), num_landmarks=8) for name in METHODS]
    methods = {fna.method for fna in chosen if fna.approximation == "nystrom"}
    partitions = {fna.partition for fna in chosen if fna.approximation == "centroid"}
    assert methods == set(landmarks.METHODS) and partitions == set(PARTITIONS)
    assert {*METHODS, *INSTEAD} < METHOD_NAMES.keys()


def test_every_strategy_is_measured():
    results = json.loads((ROOT / "results/digit_scenes_masking/masking.json").read_text())
    assert {row["strategy"] for row in results["table"]} == {"plain", *STRATEGIES}


def test_what_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    names, paths = re.findall(r"`(test_\w+)`", text), re.findall(r"`(\w+/[\w/]*[\w.]*)`", text)
    assert len(names) > 8 and len(paths) > 12
    assert [name for name in names if f"def {name}(" not in tests] == []
    assert [path for path in paths if not (ROOT / path).exists()] == []
