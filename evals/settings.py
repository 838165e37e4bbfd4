"""What is wrong with a config whatever the model, told before anything runs."""

import pathlib

from evals.tasks import TASKS
from models.registry import did_you_mean


def check_tasks(names) -> None:
    """Raises ValueError for a task that does not exist, is named twice, or for none."""
    check_choice(names, "tasks")
    for name in names:
        if name not in TASKS:
            raise ValueError(f"--config.tasks: no task {name!r}{did_you_mean(name, TASKS)}")


def check_choice(values, name) -> None:
    """Raises ValueError for no values, or repeated ones, in the field of that name."""
    if not values or len(set(values)) != len(values):
        raise ValueError(f"--config.{name} must be some values, all different: {values}")


def check_data_settings(config) -> None:
    """Raises ValueError for a count below 1, or a setting that the data makes no use of."""
    counts = ["num_labelled_scenes", "num_captioned_scenes", "num_fidelity_images", "batch_size"]
    counts += ["num_images"] if config.num_images is not None else []
    for name in counts:
        if config[name] < 1:
            raise ValueError(f"--config.{name} must be at least 1, got {config[name]}")
    embedded, folder = config.data == "digit scenes", pathlib.Path(config.data).is_dir()
    unused = {
        "templates": not folder,
        "data_images": embedded or folder,
        "num_images": embedded,
    }
    for name, nothing_uses_it in unused.items():
        if config[name] is not None and nothing_uses_it:
            raise ValueError(
                f"--config.{name} was given, but --config.data={config.data!r} makes no use of it"
            )
