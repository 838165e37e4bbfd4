"""The tasks that an attention is evaluated in, and the data that each needs."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from evals.data.notices import say
from evals.tasks.classifier import classifier
from evals.tasks.fidelity import fidelity
from evals.tasks.linear_probe import linear_probe
from evals.tasks.neighbours import knn
from evals.tasks.retrieval import retrieval
from evals.tasks.segmentation import check_segmentation, segmentation
from evals.tasks.zero_shot import zero_shot


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      run: a function of a backbone, data, an `Embedder`, a key for random landmarks, and its own
        settings by keyword, that returns the record.
      data: the kind of data that it evaluates on, of `evals.data.datasets.KINDS`.
      of_texts: whether it needs a text tower.
      of_fna: whether it has a meaning for FNA alone.
      of_patches: whether it reads the patches of single blocks, all of which must be there.
      check: a function of a backbone and the task's own settings, that raises ValueError for what
        `run` would refuse once the data are read.
    """

    run: Callable
    data: str
    of_texts: bool = False
    of_fna: bool = False
    of_patches: bool = False
    check: Callable = lambda backbone, **settings: None


TASKS = {
    "zero_shot": Task(zero_shot, "labelled", of_texts=True),
    "knn": Task(knn, "labelled split"),
    "linear_probe": Task(linear_probe, "labelled split"),
    "classifier": Task(classifier, "labelled"),
    "retrieval": Task(retrieval, "captioned", of_texts=True),
    "segmentation": Task(
        segmentation, "segmented split", of_patches=True, check=check_segmentation
    ),
    "fidelity": Task(fidelity, "images", of_fna=True),
}


def jobs_of(arms, tasks, backbone, data, embedder, config) -> list:
    """What `evals.running.workdir.run_points` runs: every task with data for every arm.

    Args:
      arms: of `evals.jobs.arms.make_arms`.
      tasks: names of `TASKS`.
      backbone: an `evals.running.pretrained.Backbone`.
      data: by kind; None for what there is none of.
      embedder: how embeddings are computed.
      config: under a task's name, if there is such a field, its own settings.

    Raises:
      ValueError: nothing to run, or settings of a task out of range.
    """
    jobs = []
    for name in tasks:
        if data[kind := TASKS[name].data] is None:
            say(f"{name} is left out: --config.data={config.data!r} has no data of kind {kind!r}")
        TASKS[name].check(backbone, **config.get(name, {}))
    for arm in arms:
        for name in tasks:
            task = TASKS[name]
            without_meaning = (task.of_fna and not arm.fna) or (
                task.of_patches and not arm.sees_all
            )
            if data[task.data] is None or without_meaning:
                continue
            run = functools.partial(
                run_task, name, backbone, arm, data[task.data], embedder, **config.get(name, {})
            )
            jobs.append((arm.name, name, run))
    if not jobs:
        raise ValueError(
            f"--config.data={config.data!r} has nothing for --config.tasks={tuple(tasks)}; knn and "
            "linear_probe want train/ beside val/ there, or images in --config.train_data"
        )
    return jobs


def run_task(name, backbone, arm, data, embedder, **settings) -> dict:
    """The record of one arm in one task, with the task's own settings."""
    rng = None if arm.seed is None else jax.random.key(arm.seed)
    return TASKS[name].run(arm.view(backbone), data, embedder, rng=rng, **settings)
