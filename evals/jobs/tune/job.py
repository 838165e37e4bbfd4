"""Attention under an error budget: from candidates to `tune.json`, and what it costs and gains."""

import dataclasses
import functools
import itertools
import typing

import jax
import numpy as np

from evals.data import batches
from evals.jobs.arms import settings_of
from evals.jobs.cost import vision_cost
from evals.jobs.opening import (
    describe,
    first_batch,
    image_sources,
    num_tokens_of,
    open_images,
    open_named,
)
from evals.jobs.settings import check_choice, check_counts
from evals.jobs.tune.blockwise import OUTPUTS, Blockwise
from evals.jobs.tune.choice import furthest_within, greedy_path
from evals.jobs.tune.report import format_report
from evals.jobs.tuned import write_tuned
from evals.running.devices import data_parallel, joined, over_batches, own_slots
from evals.running.embed import OUTPUTS as EMBEDDINGS
from evals.running.pretrained import Backbone
from evals.running.timing import time_in_turns
from evals.running.workdir import claim_workdir
from fna_jax import FNAConfig
from models.attends import relative_error
from models.registry import did_you_mean, vision_config

_SURE = 2  # standard errors of the mean error that have to fit into the budget, too
_NO_LAYERS = (0,)  # of a candidate, which belongs to no block yet


class Candidate(typing.NamedTuple):
    """A setting that saves arithmetic: its method's name, and the multiply-adds saved per block."""

    method: str
    fna: FNAConfig
    saved: int


class Choice(typing.NamedTuple):
    """What runs in each block, and at what error.

    Attributes:
      blocks: a `Candidate`, or None for exact attention.
      layer_errors: of those, on the exact inputs; 0 for exact attention.
      error: of the output, on the images that decided.
    """

    blocks: tuple[Candidate | None, ...]
    layer_errors: tuple[float, ...]
    error: float

    @property
    def fnas(self) -> tuple[FNAConfig, ...]:
        """For `models.with_attention`: blocks that run the same share an FNAConfig."""
        layers = {}
        for block, candidate in enumerate(self.blocks):
            if candidate is not None:
                layers.setdefault(candidate.fna, []).append(block)
        return tuple(
            dataclasses.replace(fna, layers=tuple(blocks)) for fna, blocks in layers.items()
        )

    def described(self) -> list[dict]:
        """Of each block its method, layer error, and multiply-adds saved, for the json."""
        return [
            {
                "method": "exact" if chosen is None else chosen.method,
                "layer_error": error,
                "saved": 0 if chosen is None else chosen.saved,
            }
            for chosen, error in zip(self.blocks, self.layer_errors)
        ]


def tune_report(config, workdir) -> str:
    """Chooses, measures, writes `tune.json` into `workdir`, and returns the text to print.

    Raises:
      FileNotFoundError, ValueError: a model, images or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    check_settings(config)
    backbone, images = _open(config)
    deciding, held_out = images[::2], images[1::2]
    num_tokens = num_tokens_of(backbone, images)
    candidates = make_candidates(config.candidates, backbone, num_tokens)
    folder = claim_workdir(config, workdir, model_sha256=backbone.fingerprint())
    choice = choose(candidates, backbone, deciding, config)
    fnas, error = handed_on(choice, backbone, deciding, config)
    encoder = vision_config(backbone.model.config).encoder
    cost = vision_cost(encoder, num_tokens, fnas)
    record = describe(backbone, config) | {
        "num_tokens": num_tokens,
        "num_candidates": len(candidates),
        "num_deciding": len(deciding),
        "num_held_out": len(held_out),
        "error_deciding": error,
        "blocks": choice.described(),
        "attention_multiply_adds": cost.attention,
        "counted_speedup": cost.speedup,
        "counted_attention_speedup": cost.attention / (cost.attention - cost.replaced + cost.fna),
    }
    record |= measure(backbone, fnas, held_out, config)
    write_tuned(folder / "tune.json", fnas, encoder.depth, record)
    return format_report(record, fnas, folder / "tune.json")


def make_candidates(settings, backbone: Backbone, num_tokens) -> list[Candidate]:
    """Every combination of the settings, those of `config.candidates`, that saves arithmetic.

    Raises:
      ValueError: settings out of range, or that the model cannot run.
    """
    encoder, found = vision_config(backbone.model.config).encoder, {}
    exact = vision_cost(encoder, num_tokens, ()).attention // encoder.depth
    for method, number, windows, near in itertools.product(
        settings.methods, settings.num_landmarks, settings.windows, settings.near
    ):
        field = dict(windows=windows, near=near) if windows else {}
        centroid = dict(features=settings.centroid_features) | field
        shared = dict(num_landmarks=number, features=settings.features, resample=True)
        fna = settings_of(method, centroid, layers=_NO_LAYERS, **shared)
        if number > num_tokens or fna in found:  # FNA has no near field
            continue
        backbone.with_attention(fna)  # knows the class token
        found[fna] = Candidate(method, fna, exact - vision_cost(encoder, num_tokens, fna).fna)
    return [candidate for candidate in found.values() if candidate.saved > 0]


def choose(candidates, backbone: Backbone, images, config) -> Choice:
    """The most saving choice on the greedy path that keeps the budget on the images.

    And, by the spread between them, probably on others.
    """
    depth = vision_config(backbone.model.config).encoder.depth
    if not candidates:
        return Choice((None,) * depth, (0.0,) * depth, 0.0)
    read = list(batches(images, backbone.preprocess, min(config.batch_size, len(images))))
    walk = Blockwise(backbone.model, read, config.output)
    methods, fnas, saved = zip(*candidates)
    errors = walk.errors(fnas, methods)
    path = greedy_path(errors.predicted, np.array(saved))
    measured = {path[0]: 0.0}  # exact

    def error_of(choice):
        of_blocks = [None if index is None else fnas[index] for index in choice]
        found = walk.output_errors(of_blocks)
        measured[choice] = float(found.mean())
        return _surely(found)

    chosen = furthest_within(path, error_of, config.budget)
    return Choice(
        tuple(None if index is None else candidates[index] for index in chosen),
        tuple(
            0.0 if index is None else float(of_block[index])
            for index, of_block in zip(chosen, errors.of_layers)
        ),
        measured[chosen],
    )


def handed_on(choice: Choice, backbone: Backbone, images, config):
    """The settings of a choice and their error on the images, with fewer partitions if that holds.

    Where several blocks run the same centroid attention, the later ones need not choose clusters
    of their own: they refine those of the block before by a Lloyd step, which costs less. Taken if
    the error keeps the budget.
    """
    cheaper = tuple(
        dataclasses.replace(fna, resample=False, refine=1)
        if fna.approximation == "centroid" and fna.resample and fna.layers[1:]
        else fna
        for fna in choice.fnas
    )
    if cheaper != choice.fnas:
        errors = output_errors(backbone, cheaper, images, config)
        if _surely(errors) <= config.budget:
            return cheaper, float(errors.mean())
    return choice.fnas, choice.error


def measure(backbone: Backbone, fnas, images, config) -> dict:
    """The error of the output on images, and the times of the vision tower, exact and tuned.

    Without any approximation the error is zero, and nothing is timed.
    """
    if not fnas:
        return {"error_held_out": 0.0, "times": {}}
    error = float(output_errors(backbone, fnas, images, config).mean())
    view = backbone.with_attention(fnas)
    batch = first_batch(images, backbone.preprocess, min(config.batch_size, len(images))).images
    runs = {
        name: functools.partial(_run, data_parallel(EMBEDDINGS["pooled"], which.model), batch)
        for name, which in (("exact", backbone), ("tuned", view))
    }
    timings = time_in_turns(runs, repeats=config.repeats, progress="timing")
    times = {
        name: {
            "ms_per_image": 1000 * timing.median / len(batch),
            "speedup": timing.speedup(timings["exact"]) if "exact" in timings else None,
            "compile_s": timing.compile_seconds,
        }
        for name, timing in timings.items()
    }
    return {"error_held_out": error, "times": times}


def output_errors(backbone: Backbone, fnas, images, config) -> np.ndarray:
    """The relative errors of the output on images, `[M']`."""
    views = backbone.model, backbone.with_attention(fnas).model
    run = data_parallel(functools.partial(_errors, config.output), views)
    parts = over_batches(run, images, backbone.preprocess, config.batch_size, desc="comparing")
    return joined(parts)[1]


def check_settings(config) -> None:
    """Raises ValueError for a setting that no model could be tuned with."""
    check_counts(config, ("num_images", "batch_size", "repeats"))
    image_sources(config.images)
    if config.budget < 0:
        raise ValueError(f"--config.budget must be at least 0, got {config.budget}")
    if config.output not in OUTPUTS:
        known = f"{', '.join(OUTPUTS)}{did_you_mean(config.output, OUTPUTS)}"
        raise ValueError(f"--config.output={config.output!r} is none of {known}")
    for name in ("methods", "num_landmarks", "windows", "near"):
        check_choice(config.candidates[name], f"candidates.{name}")
    if "random" in config.candidates.methods:
        raise ValueError(
            "--config.candidates.methods: random landmarks need a key in each call: tune 'fps'"
        )


def _open(config):
    """The model with its preprocessing, and the images, two or more."""
    backbone, images = open_named(config), open_images(config)
    if len(images) < 2:
        raise ValueError(f"--config.images={config.images!r}: half are held out, so one is too few")
    if config.image_size:
        sized = backbone.preprocess.at_size(config.image_size)
        backbone = dataclasses.replace(backbone, preprocess=sized)
    return backbone, images


def _surely(errors):
    """What the mean of such errors probably does not exceed."""
    return float(errors.mean() + _SURE * errors.std() / np.sqrt(max(len(errors) - 1, 1)))


def _errors(output, exact_and_tuned, images, rng):
    """Relative errors `[B]` of an output; random keys are for others."""
    del rng
    found = [(model, model(images)) for model in exact_and_tuned]
    exact, tuned = (OUTPUTS[output](model, seen.tokens, seen.pooled) for model, seen in found)
    return relative_error(tuned, exact)


def _run(run, batch):
    return jax.block_until_ready(run(own_slots(batch)))
