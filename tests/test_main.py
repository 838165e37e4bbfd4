"""The command line as a user meets it: mistakes, and the embedded evaluation."""

import collections
import json
import os
import pathlib
import random
import shlex
import subprocess
import sys
import time

import pytest
from absl import flags

import main
from tests.pages import ROOT, commands, rows_of, table_like

MISTAKES = {
    "config_name": (["--config", "evl.py"], "no config 'evl.py'; did you mean 'eval.py'?"),
    "no_config": ([], "which config?"),
    "field": (
        ["--config", "eval.py", "--config.fna.num_landmark=3"],
        "the config has no field 'fna.num_landmark'; did you mean 'fna.num_landmarks'?",
    ),
    "unknown_field": (["--config", "eval.py", "--config.zzz=1"], "the config has no field 'zzz'"),
    "value_type": (
        ["--config", "eval.py", "--config.batch_size=x"],
        "--config.batch_size must be a whole number from 0 to 2147483647; got 'x'",
    ),
    "flag": (["--config", "eval.py", "--workdirr=x"], "Did you mean: workdir"),
    "stray": (["--config", "eval.py", "model"], "unexpected argument 'model'"),
    "data": (["--config", "eval.py", "--config.data=/nowhere"], "'/nowhere' does not exist"),
    "model": (["--config", "eval.py", "--config.model=/nowhere"], "/nowhere"),
    "layers": (["--config", "eval.py", "--config.fna.layers=3:9"], "blocks 0 to 5"),
    "landmarks": (["--config", "eval.py", "--config.fna.num_landmarks=a"], "num_landmarks"),
    "too_many": (["--config", "eval.py", "--config.fna.num_landmarks=300"], "257 tokens"),
    "method": (
        ["--config", "eval.py", "--config.fna.methods=fsp"],
        "unknown method 'fsp'; did you mean 'fps'?",
    ),
    "strategy": (
        ["--config", "masking.py", "--config.strategies=masive-sink"],
        "unknown 'masive-sink'; did you mean 'massive-sink'?",
    ),
    "block": (["--config", "masking.py", "--config.block=6"], "blocks 0 to 5, got 6"),
    "deciding_block": (["--config", "analyze.py", "--config.block=6"], "blocks 0 to 5, got 6"),
    "images": (["--config", "analyze.py", "--config.images=/nowhere"], "/nowhere does not exist"),
    "warmup": (["--config", "train.py", "--config.num_steps=9"], "must be positive and ascend"),
    "repeats": (["--config", "speed.py", "--config.repeats=0"], "repeats must be at least 1"),
    "memory": (["--config", "speed.py", "--config.batch_size=1000000000"], "Out of memory"),
    "classifier": (
        ["--config", "classify.py", "--config.tasks=classifier"],
        "is a clip, which has no classifier of its own",
    ),
    "window": (
        ["--config", "segment.py", "--config.segmentation.window=63"],
        "window=63 is no multiple of the patch size 4",
    ),
    "grid": (
        ["--config", "sweep.py", "--config.grid.num_landmarks=(300,)"],
        "num_landmarks=300 is more than the 257 tokens",
    ),
    "half": (
        ["--config", "pretrained.py", "--config.half=all"],
        "half must be one of report, choose, got 'all'",
    ),
    "budget": (["--config", "tune.py", "--config.budget=-1"], "budget must be at least 0, got -1"),
    "no_model": (
        ["--config", "vqa.py", "--config.dataset=vqav2"],
        "--config.model is missing, and the embedded one knows digit scenes alone",
    ),
    "question_files": (
        ["--config", "vqa.py", "--config.dataset=vqav2", "--config.model=model"],
        "--config.questions is missing: give what vqav2's authors publish",
    ),
    "kept": (
        ["--config", "train_vqa.py", "--config.kept=0"],
        "kept must be percent of the patches",
    ),
    "task": (["--config", "eval.py", "--config.task=evil"], "'evil'"),
}


def start(arguments, folder):
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ
        | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_FLAGS": ""},  # as users have it
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


@pytest.mark.slow
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gives_one_line_and_a_status(mistakes, name):
    stdout, stderr, status = mistakes[name]
    assert status == 1 and stdout == ""
    error = stderr.splitlines()[-1]
    assert error.startswith("error: ") and MISTAKES[name][1] in error
    assert "Traceback" not in stderr


@pytest.fixture
def parsed():
    """`main.parse_flags` in this process: the config, or the text that it exits with."""

    def parse(*arguments):
        try:
            assert main.parse_flags(["main.py", *arguments]) == ["main.py"]
        except SystemExit as exit:  # with a text the status is 1
            return exit.code
        return main.CONFIG.value

    yield parse
    flags.FLAGS.unparse_flags()
    for name in ("config", "workdir"):
        flags.FLAGS[name].unparse()


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["--config.batch-size=8"], "did you mean 'batch_size'?"),
        (["--config.tasks[0]=zero_shot"], "did you mean 'tasks'?"),
        (["--config.fna.seeds=a"], "--config.fna.seeds must be a whole number"),
        (["--config.batch_size.x=3"], "did you mean 'batch_size'?"),
        (["--config.=3"], "no field ''"),
        (["--config[0]=3"], "no field '[0]'"),
        (["--config.fna=3"], "group of fields"),
        (["--config.batch_size"], "--config.batch_size must be given a value"),
        (["--noconfig.batch_size"], "--config.batch_size must be given a value"),
        (["--configs.batch_size=3"], "configs.batch_size"),
        (["config.batch_size=3"], "unexpected argument 'config.batch_size=3'"),
        (["--workdir"], "workdir"),
        (["--flagfile=/nowhere"], "/nowhere"),
        (["--="], "--="),
        (["--config=README.md"], "README.md is no config"),
        (["--config=evals/__init__.py"], "__init__.py is no config"),
        (["--config="], "no config ''"),
        (["--config"], "config"),
    ],
)
def test_a_mistyped_argument_is_one_line(parsed, arguments, part):
    message = parsed("--config", "eval.py", *arguments)
    assert message.startswith("error: ") and part in message and "\n" not in message


def test_overrides_are_found_wherever_they_stand(parsed, tmp_path):
    (tmp_path / "flags").write_text("--config.batch_size=5\n")
    config = parsed(
        "--config.num_labelled_scenes=7", "--config=eval.py", f"--flagfile={tmp_path}/flags"
    )
    assert (config.batch_size, config.num_labelled_scenes) == (5, 7)
    assert parsed("--config=eval.py", "--config.batch_size=3").batch_size == 3


def test_whatever_is_typed_gives_a_config_or_one_line(parsed, monkeypatch):
    monkeypatch.setattr("models.registry.did_you_mean", lambda *_: "")  # of 30 fields: slow
    typed = ["--config.fna.seeds=(0, 1)", "--config.data=somewhere", "--config.num_images=1000"]
    rng, outcomes = random.Random(0), collections.Counter()
    for _ in range(150):
        text = rng.choice(typed)
        start = rng.randrange(len(text) + 1)
        inserted = "".join(rng.choices("-.=[]()'\",0a é\\{}", k=rng.randint(0, 2)))
        argument = text[:start] + inserted + text[start + rng.randint(0, 2) :]
        outcome = parsed("--config", "eval.py", argument)
        outcomes[type(outcome)] += 1
        if isinstance(outcome, str):
            assert outcome.startswith("error: ") and "\n" not in outcome, argument
    assert min(outcomes.values()) > 30 and len(outcomes) == 2


def test_every_config_is_tried():
    tried = {pathlib.Path(arguments[1]).name for arguments, _ in MISTAKES.values() if arguments}
    assert {file.name for file in (ROOT / "configs").glob("*.py")} <= tried


@pytest.mark.slow
def test_killed_evaluation_continues(small_model, tmp_path):
    arguments = ["--config", "eval.py", f"--config.model={small_model}", "--workdir", "run"]
    arguments += ["--config.num_labelled_scenes=12", "--config.num_captioned_scenes=20"]
    arguments += ["--config.fna.num_landmarks=8", "--config.fna.methods=fps"]
    points = tmp_path / "run" / "points"
    process = start(arguments, tmp_path)
    while process.poll() is None and not list(points.glob("*.json")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    before = {file: file.stat().st_mtime_ns for file in points.glob("*.json")}
    assert 1 <= len(before) < 5 and not (tmp_path / "run" / "results.json").exists()

    process = start(arguments, tmp_path)
    stdout, stderr = process.communicate()
    assert process.returncode == 0 and "| FNA, farthest point | 8 |" in stdout, stderr
    assert len(list(points.glob("*.json"))) == 5
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_commands_of_the_pages_are_understood(parsed):
    typed = [shlex.split(line) for line in commands() if line.startswith("python main.py")]
    assert {"eval.py", "speed.py"} <= {name for _, _, _, name, *_ in typed}
    for _, _, *arguments in typed:
        config = parsed(*arguments)
        assert not isinstance(config, str), config  # else the line that says what is wrong


def test_the_shipped_models_are_small():
    for folder in (ROOT / "checkpoints").iterdir():
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert 0 < sum(file.stat().st_size for file in files) < 8 * 2**20


@pytest.mark.slow
def test_the_pages_tell_what_the_embedded_evaluation_prints(tmp_path):
    arguments = ["--config=configs/eval.py", "--config.fna.num_landmarks=16"]
    arguments += ["--config.fna.methods=fps", "--workdir", str(tmp_path / "run")]
    process = start(arguments, tmp_path)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "| FNA, farthest point | 16 |" in stdout
    printed = stdout[stdout.index("| attention |") :]
    table = json.loads((tmp_path / "run" / "results.json").read_text())["table"]
    columns = ("zero-shot top-1 %", "image→text R@1 %", "text→image R@1 %")
    expected = {(row["attention"], row["S"]): row for row in rows_of(table_like(printed))}
    for row, key in zip(table, [("exact", ""), ("FNA, farthest point", "16")], strict=True):
        told = [float(expected[key][column]) for column in columns]
        # One image of 400 or three of 1,000 may fall otherwise where another CPU rounds otherwise.
        assert [row[column] for column in columns] == pytest.approx(told, abs=0.35)
    error = float(expected[key]["embedding error"])
    assert table[1]["embedding error"] == pytest.approx(error, abs=2e-3)
