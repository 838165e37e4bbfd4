"""Eight simulated devices in one process, and two processes, against one device."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from evals.running import devices, processes
from tests.conftest import rel_max_error
from tests.evals.running.parallel import QUICK, WHOLE, evaluated, trained

ROOT = pathlib.Path(__file__).parents[3]
TIMES = ("compile_seconds", "images_per_second")


def start(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_two(arguments):
    """The same program in two processes that know of each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    return [start(arguments, JAX_PROCESS_ID=str(index), **common) for index in range(2)]


def outputs_of(*processes):
    """What each prints, but what Gloo says of itself."""
    try:
        told = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, stderr) in zip(processes, told):
        assert process.returncode == 0, stderr[-2000:]
    return ["".join(x for x in out.splitlines(True) if "[Gloo]" not in x) for out, _ in told]


def on_eight(model, extent):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    program = ["-m", "tests.evals.running.parallel", model, extent]
    (report,) = outputs_of(start(program, XLA_FLAGS=flags))
    report = json.loads(report)
    assert report["devices"] == 8
    return report


def check_equal(report, expected):
    for name, case in expected.items():
        assert report[name]["rows"] == case["rows"] == list(range(len(case["rows"])))
        assert rel_max_error(report[name]["embeddings"], case["embeddings"]) < 3e-6  # measured 4e-7
        assert report[name].get("top1") == case.get("top1")
        if "errors" in case:  # differences of numbers 10 to 100 times as large; measured: 6e-7
            assert report[name]["errors"] == pytest.approx(case["errors"], rel=6e-6)


@pytest.mark.slow
def test_eight_devices_embed_as_one_does_and_send_nothing(small_model):
    report = on_eight(small_model, "quick")
    check_equal(report, evaluated(small_model, QUICK))
    assert report["collectives"] == []


@pytest.mark.slow
def test_eight_devices_and_two_processes_evaluate_and_train_as_one_device(small_model):
    program = ["-m", "tests.evals.running.parallel", small_model, "whole"]
    first, second = outputs_of(*start_two(program))
    assert second == ""
    expected, training = evaluated(small_model, WHOLE), trained(small_model)
    for report in (on_eight(small_model, "whole"), json.loads(first)):
        check_equal(report, expected)
        assert report["training"]["loss"] == pytest.approx(training["loss"], rel=1e-6)
        # Where the gradient is zero but for rounding, rounding is all there is: hence the 1e-9.
        assert report["training"]["sums"] == pytest.approx(training["sums"], rel=1e-5, abs=1e-9)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(small_model, tmp_path):
    program = ["main.py", "--config", "eval.py", f"--config.model={small_model}"]
    program += ["--config.num_labelled_scenes=12", "--config.num_captioned_scenes=20"]
    program += ["--config.fna.num_landmarks=8"]
    program += ["--config.fna.methods=fps", "--config.num_fidelity_images=7"]
    one = start([*program, "--workdir", tmp_path / "one"])
    two = start_two([*program, "--workdir", tmp_path / "two"])
    _, shown, nothing = outputs_of(one, *two)
    assert "2 × cpu" in shown and "| FNA, farthest point | 8 |" in shown and nothing == ""

    def files(folder):
        inside = (file.relative_to(folder) for file in folder.rglob("*"))
        return sorted(str(file) for file in inside if "embeddings" not in file.parts)

    def points(folder):
        found = [json.loads(file.read_text()) for file in sorted((folder / "points").iterdir())]
        return [{k: v for k, v in point.items() if k not in TIMES} for point in found]

    assert files(tmp_path / "one") == files(tmp_path / "two")
    for alone, together in zip(points(tmp_path / "one"), points(tmp_path / "two"), strict=True):
        if together["task"] == "fidelity":  # differences of numbers 10 to 100 times as large
            errors = lambda record: [record["embedding_error"], *record["layer_errors"].values()]
            assert errors(together) == pytest.approx(errors(alone), rel=1e-4)
        else:  # percent: the same images and captions are right
            assert together == alone


@pytest.mark.slow
def test_the_others_end_when_one_process_fails(small_model, tmp_path):
    program = ["main.py", "--config", "eval.py", f"--config.model={small_model}"]
    program += ["--workdir", tmp_path / "run"]
    first, second = start_two(program)
    while second.poll() is None and not (tmp_path / "run" / "config.json").exists():
        time.sleep(0.01)
    second.kill()
    second.communicate()
    first.communicate(timeout=100)  # measured: 22 seconds
    assert first.returncode != 0


@pytest.mark.parametrize("name", ["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES"])
def test_half_an_environment_of_several_processes_is_refused(monkeypatch, name):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    if name == "JAX_NUM_PROCESSES":
        monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises((ValueError, RuntimeError), match=r"JAX_PROCESS_ID|before"):
        processes.initialize()


def test_slots_are_filled_up_at_the_end():
    filled = devices._filled(np.arange(5), 4, empty=-1)
    assert filled.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert devices._filled(np.ones((4, 2)), 4).shape == (4, 2)
    rows, tree = devices.joined([(np.array([0]), {"a": np.ones(1)}), (np.array([2]), {"a": [3.0]})])
    assert rows.tolist() == [0, 2] and tree["a"].tolist() == [1, 3]
