"""`python main.py --config eval.py [--config.FIELD=VALUE …]`; see `configs/` for the others."""

import pathlib
import sys

from absl import app, flags, logging

from evals.running.overrides import apply_overrides, load_config, split_overrides

ROOT = pathlib.Path(__file__).parent


class ConfigFile(flags.ArgumentParser):
    """The config of a file: a path, or a name in `configs/`, from any directory."""

    def parse(self, name):
        for file in (pathlib.Path(name), ROOT / name, ROOT / "configs" / name):
            if file.is_file():
                return load_config(file)
        raise flags.Error(f"no config {name!r}{_hint(name)}")


CONFIG = flags.DEFINE(ConfigFile(), "config", None, "a file of configs/, or a path")
WORKDIR = flags.DEFINE_string("workdir", None, "results folder; default: a fresh one in runs/")
TASKS = {  # functions of config and workdir that return the text to print
    "analyze": "evals.jobs.analysis.job:analyze",
    "eval": "evals.jobs.evaluate.report:evaluation_report",
    "masking": "evals.jobs.masking.report:masking_report",
    "pretrained": "evals.jobs.pretrained.report:pretrained_report",
    "speed": "evals.jobs.speed:speed_report",
    "sweep": "evals.jobs.sweep.report:sweep_report",
    "tune": "evals.jobs.tune.job:tune_report",
    "vqa": "evals.jobs.vqa.report:vqa_report",
    "train": "training.contrastive:training_report",
    "train_vqa": "training.answering:training_report",
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
        sys.exit(_one_line(error))
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # how XLA says that memory ran out
            raise
        sys.exit(_one_line(str(error).splitlines()[0]))


def parse_flags(argv):
    """absl's flag parser, with overrides of the config and one line per mistake."""
    try:
        others, overrides = split_overrides(flags.FLAGS.read_flags_from_files(argv[1:]))
        if len(remaining := flags.FLAGS([argv[0], *others])) > 1:
            raise flags.Error(f"unexpected argument {remaining[1]!r}; options are --NAME=VALUE")
        if CONFIG.value is None:
            raise flags.Error(f"which config? Choose with --config NAME{_hint('')}")
        apply_overrides(CONFIG.value, overrides)
        return remaining
    except (flags.Error, ValueError, OSError) as error:
        sys.exit(_one_line(error))


def _one_line(error):
    return f"error: {' '.join(str(error).split())}"


def _hint(name):
    from models.registry import did_you_mean  # imports jax, which takes seconds

    return did_you_mean(name, sorted(file.name for file in (ROOT / "configs").glob("*.py")))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
