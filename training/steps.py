"""Steps of training that go on where a killed run left off, and the optimizer's."""

import functools
import json
import time

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import tqdm
from jax.sharding import PartitionSpec as P

from evals.jobs.settings import check_counts
from evals.running.devices import put
from evals.running.processes import on_first
from evals.running.workdir import claim_workdir, environment, write_atomically


def run(config, workdir, update, state, save) -> dict:
    """All steps of a run; saves its model once, and returns the record, as in `train.json`.

    The state is saved every `config.save_every` steps: if the data of a step depend on its number
    alone, a run that was killed goes on from there and ends with the same loss.

    Args:
      config: of the run.
      workdir: its folder.
      update: a function of state and step that gives the next state and the loss.
      state: the first one.
      save: a function of the last state, in memory of the host, and of the model's folder.

    Raises:
      ValueError: `workdir` holds a run with other settings.
    """
    workdir = claim_workdir(config, workdir)
    state, record = _from_last_save(config, workdir / "state", update, put(state, P()))

    def save_once():
        if not (workdir / "model").exists():
            save(jax.tree.map(np.asarray, state), workdir / "model")

    on_first(save_once)
    record |= {"model": str(workdir / "model"), **environment()}
    write_atomically(workdir / "train.json", json.dumps(record, indent=2))
    return record


def _from_last_save(config, folder, update, state):
    """The state after all steps, and the record of this run."""
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(folder, options=options) as manager:
        saved = {"state": state, "loss": np.zeros(())}
        first = manager.latest_step() or 0
        if first:
            saved = manager.restore(first, args=ocp.args.StandardRestore(saved))
        state, loss = saved["state"], saved["loss"]
        start, start_cpu = time.perf_counter(), time.process_time()
        steps = tqdm.trange(
            first, config.num_steps, initial=first, total=config.num_steps, mininterval=5
        )
        for step in steps:
            state, loss = update(state, step)
            if (step + 1) % config.save_every == 0 or step + 1 == config.num_steps:
                steps.set_postfix(loss=f"{float(loss):.3f}")
                saved = {"state": state, "loss": np.asarray(loss)}
                manager.save(step + 1, args=ocp.args.StandardSave(saved))
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return state, {
        "final_loss": float(loss),
        "steps": config.num_steps,
        "steps_of_this_run": config.num_steps - first,
        "seconds_of_this_run": round(seconds, 1),
        "cpu_seconds_of_this_run": round(cpu, 1),
    }


def check_steps(config) -> None:
    """Raises ValueError for a setting out of range that no step or only a late one would refuse."""
    check_counts(config, ("batch_size", "save_every"))
    if config.learning_rate <= 0:
        raise ValueError(f"--config.learning_rate must be above 0, got {config.learning_rate}")
    if config.weight_decay < 0:
        raise ValueError(f"--config.weight_decay must be at least 0, got {config.weight_decay}")


def adamw(config) -> optax.GradientTransformation:
    """AdamW whose rate rises, stays, and falls to zero; the same object for equal settings.

    Raises:
      ValueError: `warmup_steps`, `decay_from` and `num_steps` that do not ascend.
    """
    return _adamw(
        config.learning_rate,
        config.warmup_steps,
        config.decay_from,
        config.num_steps,
        config.weight_decay,
    )


@functools.cache  # optax compares by identity: equal settings shall compile once
def _adamw(rate, warmup_steps, decay_from, num_steps, weight_decay):
    if not 0 < warmup_steps < decay_from < num_steps:
        raise ValueError(
            "warmup_steps, decay_from and num_steps must be positive and ascend, got "
            f"{warmup_steps}, {decay_from}, {num_steps}"
        )
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, rate, warmup_steps),
            optax.constant_schedule(rate),
            optax.linear_schedule(rate, 0.0, num_steps - decay_from),
        ],
        [warmup_steps, decay_from],
    )
    # Biases and scales do not decay, but those of query, key and value, which have two axes.
    decays = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mask=decays),
    )
