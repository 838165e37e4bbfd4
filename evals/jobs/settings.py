"""What is wrong with a config whatever the model, told before anything runs."""

from evals.data.datasets import OF_USERS, format_of
from evals.tasks.table import TASKS
from models.registry import did_you_mean

_COUNTS = (
    "num_labelled_scenes",
    "num_captioned_scenes",
    "num_segmented_scenes",
    "num_train_scenes",
    "num_fidelity_images",
    "num_images",
    "batch_size",
)


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


def check_counts(config, names) -> None:
    """Raises ValueError for a field of those names below 1; None, and no such field, are fine."""
    for name in names:
        if (count := config.get(name)) is not None and count < 1:
            raise ValueError(f"--config.{name} must be at least 1, got {count}")


def check_data_settings(config) -> None:
    """Raises ValueError for a count below 1, or a setting that the data makes no use of.

    And FileNotFoundError for data that do not exist.
    """
    check_counts(config, _COUNTS)
    if (workers := config.get("num_workers")) is not None and workers < 0:
        raise ValueError(f"--config.num_workers must be at least 0, got {workers}")
    format = format_of(config)
    for name in OF_USERS:
        if config.get(name) is not None and name not in format.settings:
            raise ValueError(
                f"--config.{name} was given, but --config.data={config.data!r} makes no use of it"
            )
