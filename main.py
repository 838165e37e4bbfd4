"""The command line: `python main.py --config eval.py` or `--config train.py`.

Fields of a config are set with `--config.FIELD=VALUE`; see `configs/`.
"""

import datetime
import json
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from models.registry import did_you_mean

ROOT = pathlib.Path(__file__).parent
CONFIG = config_flags.DEFINE_config_file("config", help_string="a file of configs/, or a path")
WORKDIR = flags.DEFINE_string("workdir", None, "results folder; default: a fresh one in runs/")


def main(_):
    logging.set_verbosity(logging.WARNING)  # jax and orbax tell much at INFO
    config = CONFIG.value
    stamp = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    workdir = pathlib.Path(WORKDIR.value or ROOT / "runs" / f"{config.task}-{stamp}")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        print(_run(config, workdir))
    except (ValueError, OSError) as error:  # the user's input; anything else is a bug
        sys.exit(f"error: {error}")


def _run(config, workdir) -> str:
    if config.task == "train":
        from training.contrastive import train

        return json.dumps(train(config, workdir), indent=2)
    from evals.evaluate import evaluate, landmark_examples
    from evals.report import write_report

    results = evaluate(config, workdir)
    return write_report(results, workdir, landmarks=landmark_examples(config))


def parse_flags(argv):
    """absl's flag parser, with configs found from any directory and one line per mistake."""
    try:
        argv[:] = [_with_config_path(argument, argv[i - 1]) for i, argument in enumerate(argv)]
        sys.argv[:] = argv  # where config_flags looks for overrides
        remaining = flags.FLAGS(argv)
        if len(remaining) > 1:
            raise flags.Error(f"unexpected argument {remaining[1]!r}; options are --NAME=VALUE")
        if CONFIG.value is None:
            raise flags.Error(f"which config? --config NAME{did_you_mean('', _config_names())}")
        return remaining
    except flags.Error as error:
        sys.exit(f"error: {error}")
    except AttributeError as error:  # how ml_collections reports an unknown field
        sys.exit(f"error: no such field of the config: {' '.join(str(error).split())}")


def _with_config_path(argument, previous):
    """The argument, with the path of a config that is given by name or relative to the checkout."""
    prefix, name = "", argument
    if argument.startswith("--config="):
        prefix, name = "--config=", argument.removeprefix("--config=")
    elif previous not in ("--config", "-config"):
        return argument
    for path in (pathlib.Path(name), ROOT / name, ROOT / "configs" / name):
        for file in (path, path.with_name(path.name + ".py")):
            if file.is_file():
                return prefix + str(file.absolute())
    raise flags.Error(f"no config {name!r}{did_you_mean(name, _config_names())}")


def _config_names():
    return sorted(file.name for file in (ROOT / "configs").glob("*.py"))


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
