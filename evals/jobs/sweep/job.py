"""A grid of settings against quality and speed, point by point, resumable: `--config sweep.py`."""

import dataclasses
import functools
import itertools

import jax
import ml_collections

from evals.data.datasets import open_data
from evals.jobs.arms import (
    INSTEAD,
    NAMED_LAYERS,
    Arm,
    blocks_of,
    instead,
    kind_of,
    seeds_of,
    settings_of,
)
from evals.jobs.opening import (
    check_num_landmarks,
    first_batch,
    num_tokens_of,
    open_data_of,
    open_model_of,
    run_jobs,
)
from evals.jobs.settings import check_choice, check_counts, check_data_settings, check_tasks
from evals.jobs.strategies import STRATEGIES, Strategy
from evals.running.devices import data_parallel, own_slots
from evals.running.embed import OUTPUTS, open_embedder
from evals.running.timing import time_in_turns
from evals.tasks.table import jobs_of
from fna_jax.config import parse_blocks
from models.registry import vision_config

DIMENSIONS = {  # of the grid: the field of `config.grid`, and what a table calls it
    "layers": "blocks",
    "num_landmarks": "S",
    "features": "features",
    "methods": "method",
    "kept": "kept %",
    "resample": "resample",
    "seeds": "seed",
    "image_sizes": "px",
    "strategies": "masking",
}
_OWN_SIZE, _NO_STRATEGY = 0, "none"


def sweep(config: ml_collections.ConfigDict, workdir) -> dict:
    """Every task for every point of the grid and exact attention; then the speed of all, in turns.

    What is finished is kept in `workdir`, and found there the next time.

    Returns:
      A dictionary: `points` (records of arms and tasks, the speeds as task "speed"), `settings` of
      the arms by name, `left_out` (arms that FNA cannot run, with the reason), `model`, `config`,
      `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, data or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    check_settings(config)
    backbone = open_model_of(config)
    arms = grid_arms(config, vision_config(backbone.model.config).encoder.depth)
    images = open_data("images", config)
    left_out = check_arms(arms, backbone, images)
    settings = {name: described for name, (_, described) in arms.items() if name not in left_out}
    arms = [arms[name][0] for name in settings]
    embedder, data = open_embedder(config, workdir), open_data_of(config)
    jobs = jobs_of(arms, config.tasks, backbone, data, embedder, config)
    for size in dict.fromkeys(arm.image_size for arm in arms):
        alike = [arm for arm in arms if arm.image_size == size]
        measure = functools.partial(
            speeds, alike, backbone, images, config.batch_size, config.repeats
        )
        jobs.append((f"{size or 'own'}-px", "speed", measure))
    results = run_jobs(jobs, backbone, config, workdir)
    return results | {"settings": settings, "left_out": left_out}


def grid_arms(config, depth) -> dict[str, tuple[Arm, dict]]:
    """By name, every point of the grid with its settings in words, exact attention first.

    Exact attention comes once for each image size and strategy; seeds are for random choices.

    Args:
      config: of the sweep; `config.grid` has the choices of every one of `DIMENSIONS`.
      depth: blocks of the model.

    Raises:
      ValueError: a choice that no model could run.
    """
    grid, arms = config.grid, {}
    # Here features are among the choices.
    centroid = {name: value for name, value in config.centroid.items() if name != "features"}

    def add(seed, size, strategy, words, method="exact", **fields):
        masking = None if strategy == _NO_STRATEGY else Strategy(strategy, **config.masking)
        words = words | {"px": size or "own", "masking": strategy, "seed": seed}
        parts = [f"{key}={value}" for key, value in words.items() if value is not None]
        name = " ".join([kind_of(method), *parts]).replace(":", "-")
        options = dict(seed=seed, image_size=size or None, strategy=masking, **fields)
        arms[name] = Arm(method=method, name=name, **options), words

    for size, strategy in itertools.product(grid.image_sizes, grid.strategies):
        add(None, size, strategy, {})
        for layers, count, features, method, resample in itertools.product(
            grid.layers, grid.num_landmarks, grid.features, grid.methods, grid.resample
        ):
            seeds, choices = seeds_of(method, grid.seeds), dict(features=features)
            choices |= dict(layers=blocks_of(layers, depth))
            if method in INSTEAD:  # the other choices give the same arms again
                for kept, seed in itertools.product(grid.kept, seeds):
                    fields = instead(method, kept, config.merging, depth, **choices)
                    words = _reduction_in_words(**fields) | {"method": method, "kept %": kept}
                    add(seed, size, strategy, words, method, **fields)
                continue
            choices |= dict(num_landmarks=count, resample=resample)
            fna = settings_of(method, centroid, **choices)
            words = {"blocks": _in_words(fna.layers), "S": count, "features": fna.features}
            words |= {"method": method, "resample": fna.resample}
            for seed in seeds:
                add(seed, size, strategy, words, method, fna=fna)
    return arms


def check_arms(arms, backbone, images) -> dict[str, str]:
    """Names of the arms in which masking and FNA do not go together, each with the reason.

    Raises:
      ValueError: settings that the model cannot run with any masking.
    """
    left_out, num_tokens = {}, {}
    for name, (arm, _) in arms.items():
        plain = dataclasses.replace(arm, strategy=None).view(backbone)
        if (size := arm.image_size) not in num_tokens:
            num_tokens[size] = num_tokens_of(plain, images)
        if arm.fna is not None:
            of = f"an image of {size} pixels" if size else "an image"
            check_num_landmarks(arm.fna.num_landmarks, num_tokens[size], of=of)
        if arm.strategy is not None:
            arm.strategy.view(backbone)  # without FNA it must be possible
        try:
            arm.view(backbone)
        except ValueError as error:
            left_out[name] = str(error)
    return left_out


def speeds(arms, backbone, images, batch_size, repeats, output=OUTPUTS["pooled"]) -> dict:
    """The record of arms with images of one size, timed in turns: images per second by name.

    `speedup` is over the exact arm among them without masking, the median over rounds.

    Args:
      arms: of `evals.jobs.arms`.
      backbone: the model.
      images: of which the first batch is run.
      batch_size, repeats: images of a batch, and rounds.
      output: what to compute, a function as those of `evals.running.embed.OUTPUTS`.
    """
    runs, count = {}, min(batch_size, len(images))
    read = functools.cache(lambda preprocess: first_batch(images, preprocess, count).images)
    for arm in arms:
        view = arm.view(backbone)
        run, batch = data_parallel(output, view.model), read(view.preprocess)
        key = None if arm.seed is None else jax.random.key(arm.seed)
        runs[arm.name] = functools.partial(
            lambda run, batch, key: jax.block_until_ready(run(own_slots(batch), key)),
            run,
            batch,
            key,
        )
    timings = time_in_turns(runs, repeats=repeats, progress="timing")
    exact = next(arm.name for arm in arms if arm.method == "exact")
    return {
        "task": "speed",
        "images_per_second": {name: len(batch) / t.median for name, t in timings.items()},
        "speedup": {name: t.speedup(timings[exact]) for name, t in timings.items()},
        "compile_seconds": {name: t.compile_seconds for name, t in timings.items()},
    }


def check_settings(config) -> None:
    """Raises ValueError for a number out of range, a repetition, or a setting nothing would use."""
    check_tasks(config.tasks)
    check_data_settings(config)
    check_counts(config, ["repeats"])
    Strategy(next(iter(STRATEGIES)), **config.masking)  # whose settings are checked, if used or not
    for name in DIMENSIONS:
        if not isinstance(config.grid[name], tuple | list):
            raise ValueError(
                f"--config.grid.{name} must be a tuple of choices, got {config.grid[name]!r}"
            )
        check_choice(config.grid[name], f"grid.{name}")
    for size in config.grid.image_sizes:
        if size != _OWN_SIZE and size < 1:
            raise ValueError(f"--config.grid.image_sizes: {size} pixels are no image")
    for layers in config.grid.layers:
        if layers not in NAMED_LAYERS:
            parse_blocks(layers, "--config.grid.layers")


def _reduction_in_words(reduction=None, pixels=None):
    """Of what takes tokens away the choices that it has; none where the image is smaller."""
    del pixels
    if reduction is None:
        return {}
    words = {"blocks": _in_words(reduction.layers)}
    return words | ({"features": reduction.features} if reduction.drops else {})


def _in_words(blocks):
    """Consecutive blocks as "3:6", others one by one."""
    if blocks == tuple(range(blocks[0], blocks[-1] + 1)):
        return f"{blocks[0]}:{blocks[-1] + 1}"
    return ",".join(map(str, blocks))
