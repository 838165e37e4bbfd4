"""The tasks that an attention is evaluated in, and the data that each needs."""

import dataclasses
import functools
from collections.abc import Callable

import jax

from evals.fidelity import fidelity
from evals.retrieval import retrieval
from evals.zero_shot import zero_shot


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      run: a function of a backbone, data, an `Embedder`, and a key for random landmarks, that
        returns the record.
      data: the kind of data that it evaluates on, of `evals.datasets.KINDS`.
      of_texts: whether it needs a text tower.
      of_fna: whether it has a meaning for FNA alone.
    """

    run: Callable
    data: str
    of_texts: bool = False
    of_fna: bool = False


TASKS = {
    "zero_shot": Task(zero_shot, "labelled", of_texts=True),
    "retrieval": Task(retrieval, "captioned", of_texts=True),
    "fidelity": Task(fidelity, "images", of_fna=True),
}


def jobs_of(arms, tasks, backbone, data, embedder) -> list:
    """What `evals.workdir.run_points` runs: every task with data for every arm.

    Args:
      arms: of `evals.arms.make_arms`.
      tasks: names of `TASKS`.
      backbone: an `evals.pretrained.Backbone`.
      data: by kind; None for what there is none of.
      embedder: how embeddings are computed.
    """
    jobs = []
    for arm in arms:
        for name in tasks:
            task = TASKS[name]
            if data[task.data] is None or (task.of_fna and arm.fna is None):
                continue
            run = functools.partial(run_task, name, backbone, arm, data[task.data], embedder)
            jobs.append((arm.name, name, run))
    return jobs


def run_task(name, backbone, arm, data, embedder) -> dict:
    """The record of one arm in one task."""
    rng = None if arm.seed is None else jax.random.key(arm.seed)
    return TASKS[name].run(backbone.with_attention(arm.fna), data, embedder, rng=rng)
