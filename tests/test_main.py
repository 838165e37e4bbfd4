"""The command line as a user meets it: mistakes, and the embedded evaluation."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
MISTAKES = {
    "config_name": (["--config", "evl.py"], "no config 'evl.py'; did you mean 'eval.py'?"),
    "no_config": ([], "which config?"),
    "field": (
        ["--config", "eval.py", "--config.fna.num_landmark=3"],
        "the config has no field num_landmark. Did you mean num_landmarks",
    ),
    "unknown_field": (["--config", "eval.py", "--config.zzz=1"], "the config has no field zzz"),
    "value_type": (["--config", "eval.py", "--config.batch_size=x"], "batch_size=x"),
    "flag": (["--config", "eval.py", "--workdirr=x"], "Did you mean: workdir"),
    "stray": (["--config", "eval.py", "model"], "unexpected argument 'model'"),
    "data": (["--config", "eval.py", "--config.data=/nowhere"], "'/nowhere' does not exist"),
    "model": (["--config", "eval.py", "--config.model=/nowhere"], "/nowhere"),
    "layers": (["--config", "eval.py", "--config.fna.layers=3:9"], "blocks 0 to 5"),
    "landmarks": (["--config", "eval.py", "--config.fna.num_landmarks=a"], "num_landmarks"),
    "too_many": (["--config", "eval.py", "--config.fna.num_landmarks=300"], "257 tokens"),
    "method": (["--config", "eval.py", "--config.fna.methods=fsp"], "method must be one of"),
    "task": (["--config", "eval.py", "--config.task=evil"], "'evil'"),
}


def start(arguments, folder):
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory):
    """All mistakes made at once: starting Python takes most of the time."""
    folders = {name: tmp_path_factory.mktemp(name) for name in MISTAKES}
    processes = {
        name: start([*arguments, "--workdir", str(folders[name] / "run")], folders[name])
        for name, (arguments, _) in MISTAKES.items()
    }
    return {
        name: (*process.communicate(), process.returncode) for name, process in processes.items()
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_a_status(mistakes, name):
    stdout, stderr, status = mistakes[name]
    assert status == 1 and stdout == ""
    error = stderr.splitlines()[-1]
    assert error.startswith("error: ") and MISTAKES[name][1] in error
    assert "Traceback" not in stderr


def readme_rows():
    """The README's table of the embedded evaluation, by attention and S."""
    text = (ROOT / "README.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith(("| exact |", "| FNA, "))
    ]
    return {(row[0], row[1]): [float(cell.split()[0]) for cell in row[2:6]] for row in rows}


def test_the_readme_tells_what_the_embedded_evaluation_prints(tmp_path):
    arguments = ["--config=configs/eval.py", "--config.fna.num_landmarks=16"]
    arguments += ["--config.fna.methods=fps", "--workdir", str(tmp_path / "run")]
    process = start(arguments, tmp_path)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "| FNA, farthest point | 16 |" in stdout
    table = json.loads((tmp_path / "run" / "results.json").read_text())["table"]
    columns = ("zero-shot top-1 %", "image→text R@1 %", "text→image R@1 %")
    expected = readme_rows()
    for row, key in zip(table, [("exact", ""), ("FNA, farthest point", "16")], strict=True):
        measured = [row[column] for column in columns]
        # One image of 300 or three of 1,000 may fall otherwise where another CPU rounds otherwise.
        assert measured == pytest.approx(expected[key][:3], abs=0.35)
        assert row.get("embedding error", 0) == pytest.approx(expected[key][3], abs=2e-3)
