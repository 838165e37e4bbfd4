"""`python main.py --config eval.py [--config.FIELD=VALUE …]`; see `configs/` for the others."""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

ROOT = pathlib.Path(__file__).parent
CONFIG = config_flags.DEFINE_config_file("config", help_string="a file of configs/, or a path")
WORKDIR = flags.DEFINE_string("workdir", None, "results folder; default: a fresh one in runs/")
TASKS = {  # functions of config and workdir that return the text to print
    "analyze": "evals.jobs.analysis.job:analyze",
    "eval": "evals.jobs.evaluate.report:evaluation_report",
    "masking": "evals.jobs.masking.report:masking_report",
    "speed": "evals.jobs.speed:speed_report",
    "sweep": "evals.jobs.sweep.report:sweep_report",
    "train": "training.contrastive:training_report",
}


def main(_):
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    try:
        if (task := config.get("task")) not in TASKS:
            raise ValueError(f"config.task must be one of {', '.join(TASKS)}, got {task!r}")
        from evals.running import processes  # imports jax only now

        processes.run(TASKS[task], config, WORKDIR.value, runs=ROOT / "runs")
    # The user's input, or too much of it; anything else is a bug.
    except (ValueError, OSError, MemoryError, OverflowError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # how XLA says that memory ran out
            raise
        sys.exit(f"error: {str(error).splitlines()[0]}")


def parse_flags(argv):
    """absl's flag parser, with configs found from any directory and one line per mistake."""
    try:
        argv[:] = [_with_config_path(argument, argv[i - 1]) for i, argument in enumerate(argv)]
        sys.argv[:] = argv  # where config_flags looks for overrides
        if len(remaining := flags.FLAGS(argv)) > 1:
            raise flags.Error(f"unexpected argument {remaining[1]!r}; options are --NAME=VALUE")
        if CONFIG.value is None:
            raise flags.Error(f"which config? Choose with --config NAME{_hint('')}")
        return remaining
    except flags.Error as error:
        sys.exit(f"error: {error}")
    except AttributeError as error:  # how ml_collections reports an unknown field
        field = str(error).replace("\\n", ". ").translate(str.maketrans("", "", "'\"\\"))
        sys.exit(f"error: the config has no field {field}")


def _with_config_path(argument, previous):
    """The argument; if it names a config, with the path of that config's file."""
    prefix, name = "", argument
    if argument.startswith("--config="):
        prefix, name = "--config=", argument.removeprefix("--config=")
    elif previous != "--config":
        return argument
    for file in (pathlib.Path(name), ROOT / name, ROOT / "configs" / name):
        if file.is_file():
            return prefix + str(file.absolute())
    raise flags.Error(f"no config {name!r}{_hint(name)}")


def _hint(name):
    from models.registry import did_you_mean  # imports jax, which takes seconds

    return did_you_mean(name, sorted(file.name for file in (ROOT / "configs").glob("*.py")))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
