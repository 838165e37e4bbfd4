"""Kill −9 at random points: a run that is started again ends with the table of an undisturbed one.

python -m tests.kills --kills 50
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import tqdm

from benchmarks.rows import write_rows
from evals.running.workdir import ROOT

SETTINGS = {  # of a short sweep
    "num_labelled_scenes": 40,
    "num_captioned_scenes": 30,
    "num_fidelity_images": 8,
    "batch_size": 8,
    "repeats": 1,
    "tasks": '("zero_shot","fidelity")',
    "grid.num_landmarks": "(8,)",
    "grid.resample": "(False,)",
    "grid.features": '("q",)',
}
TIMES = ("images/s", "times exact", "front")


def start(workdir, cache):
    """The sweep as a process, its own group, silent; compiled programs are kept in `cache`."""
    overrides = [f"--config.{name}={value}" for name, value in SETTINGS.items()]
    command = [sys.executable, "main.py", "--config", "sweep.py", *overrides]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ
        | {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Waits for the end; raises RuntimeError with what the process said if it failed."""
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit status {process.returncode}: {said[-2000:]}")


def table(workdir) -> list[dict]:
    """The rows of a finished sweep, without what noise changes."""
    results = json.loads((workdir / "sweep.json").read_text())
    return [{k: v for k, v in row.items() if k not in TIMES} for row in results["table"]]


def files(workdir) -> set[str]:
    """Everything in the folder, but what was left half-written and has no final name."""
    return {
        str(file.relative_to(workdir)) for file in workdir.rglob("*") if ".partial" not in file.name
    }


def campaign(kills, folder, *, seed=0):
    """Kills runs that many times, checks each that gets through, and yields a record of each.

    A run is killed again and again, each time a random while after its start, until one gets
    through before its kill, or the kills are spent.

    Raises:
      AssertionError: a run ended with another table or other files than the undisturbed one.
    """
    chance = random.Random(seed)
    cache, calm = folder / "cache", folder / "calm"
    finish(start(calm, cache))
    began = time.perf_counter()
    finish(start(folder / "warm", cache))
    seconds = time.perf_counter() - began
    number = 0
    while kills > 0:
        workdir, died = folder / f"run{number}", 0
        while True:
            process = start(workdir, cache)
            try:
                process.wait(chance.uniform(0, seconds) if kills > 0 else None)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills, died = kills - 1, died + 1
                continue
            finish(process)
            break
        assert table(workdir) == table(calm), f"{workdir} differs from {calm} after {died} kills"
        assert files(workdir) == files(calm)
        yield {"run": number, "kills": died, "points": len(list((calm / "points").iterdir()))}
        number += 1


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m tests.kills")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=str(ROOT / "results" / "kills.csv"))
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        runs = campaign(arguments.kills, pathlib.Path(folder), seed=arguments.seed)
        rows = list(tqdm.tqdm(runs, unit="run"))
    write_rows(arguments.output, rows)
    print(f"{sum(row['kills'] for row in rows)} kills in {len(rows)} runs: all tables are equal")


if __name__ == "__main__":
    main()
