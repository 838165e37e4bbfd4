"""Result folders: claimed by one set of settings, never holding half a file."""

import io
import json
import os
import pathlib
import shlex
import sys

import flax
import jax
import tqdm

from evals.running.processes import on_first

ROOT = pathlib.Path(__file__).parents[2]


def claim_workdir(config, workdir, **identity) -> pathlib.Path:
    """The folder, made if need be, marked with the settings of the run that writes into it.

    Args:
      config: a ConfigDict.
      workdir: the folder.
      **identity: what else must be the same for results to belong together.

    Raises:
      ValueError: the folder holds a run with other settings, or on another device or version.
    """
    workdir = pathlib.Path(workdir).absolute()
    on_first(lambda: _claim(config, workdir, identity))
    return workdir


def _claim(config, workdir, identity):
    here = {name: value for name, value in environment().items() if name != "command"}
    settings = json.dumps(config.to_dict() | here | identity, indent=2, sort_keys=True)
    file = workdir / "config.json"
    if file.exists() and (before := file.read_text(encoding="utf-8")) != settings:
        lines = set(before.splitlines()) ^ set(settings.splitlines())
        changed = ", ".join(sorted({line.split(":")[0].strip(' "') for line in lines}))
        raise ValueError(
            f"{workdir} holds a run with other settings ({changed}); choose another --workdir"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(file, settings)
    print(f"results in {workdir}", file=sys.stderr)


def run_points(jobs, folder) -> list[dict]:
    """The record of each job, kept in `folder` as `ARM.TASK.json`, and found there the next time.

    Args:
      jobs: triples of an arm's name, a task's, and a function that gives the record.
      folder: made if need be.
    """
    folder.mkdir(parents=True, exist_ok=True)
    points = []
    for arm, task, run in tqdm.tqdm(jobs, desc="evaluating", unit="task", mininterval=1):
        file = folder / f"{arm}.{task}.json"
        if not on_first(file.exists):
            write_atomically(file, json.dumps({"arm": arm} | run(), indent=2))
        points.append(json.loads(on_first(file.read_text)))
    return points


def environment() -> dict:
    """Command, device and versions, for every number."""
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    device = f"{count} × {kind}" if count > 1 else kind
    return {
        "command": f"python {shlex.join(sys.orig_argv[1:])}".replace(f"{ROOT}/", ""),
        "device": f"{device} ({os.cpu_count()} CPU cores)",
        "jax": jax.__version__,
        "flax": flax.__version__,
    }


def write_atomically(file, content) -> None:
    """Writes text or bytes beside `file`, then renames: the name never holds half a file.

    Of several processes the first one writes.
    """
    if jax.process_index() > 0:
        return
    file = pathlib.Path(file)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")  # another run may write it, too
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")  # names of files may hold anything
    partial.write_bytes(content)
    partial.replace(file)


def save_figure(figure, file, **options) -> None:
    """Writes a matplotlib figure as a PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", **{"dpi": 120} | options)
    write_atomically(file, content.getvalue())
