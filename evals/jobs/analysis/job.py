"""The job of `--config analyze.py`: from settings to a page, PNGs and numbers in a folder."""

import json

import ml_collections
import numpy as np

import models
from evals.data.notices import printable
from evals.jobs.analysis.measure import Plan, measure
from evals.jobs.analysis.page import render
from evals.jobs.analysis.pictures import draw
from evals.jobs.analysis.results import count_table, in_words, summarize
from evals.jobs.landmark_map import cluster_maps, displayable, landmark_points
from evals.jobs.opening import (
    check_num_landmarks,
    describe,
    image_sources,
    num_tokens_of,
    open_images,
    open_named,
)
from evals.jobs.settings import check_counts
from evals.jobs.tables import headline
from evals.running.pretrained import Backbone
from evals.running.workdir import claim_workdir, write_atomically
from fna_jax import FNAConfig
from fna_jax.config import parse_blocks
from models.interventions import check_block
from models.registry import vision_config

_COUNTS = ("num_images", "batch_size", "max_sinks", "num_examples", "num_landmarks")
_MOST_EXAMPLES = 16  # matplotlib takes a second for each


def analyze(config: ml_collections.ConfigDict, workdir) -> str:
    """Writes `index.html`, its PNGs and `analysis.json` into `workdir`; the text to print.

    Raises:
      FileNotFoundError, ValueError: a model, images or settings that cannot be used, or a `workdir`
        of a run with other settings.
    """
    check_settings(config)
    backbone = open_named(config)
    plan = make_plan(config, vision_config(backbone.model.config).encoder.depth)
    images = open_images(config)
    nystrom, centroid = views(backbone, images, config.num_landmarks)
    workdir = claim_workdir(config, workdir, model_sha256=backbone.fingerprint())
    measured = measure(
        backbone.model,
        images,
        backbone.preprocess,
        plan,
        batch_size=min(config.batch_size, len(images)),
        num_examples=config.num_examples,
    )
    for example in measured.examples:
        pixels = example["pixels"][None]
        (example["shown"],) = displayable(pixels, backbone.preprocess)
        (example["landmarks"],) = landmark_points(nystrom, pixels)
        (example["clusters"],) = cluster_maps(centroid, pixels)
    num_prefix = models.vision_tower(backbone.model).num_prefix
    results = describe(backbone, config) | summarize(measured, plan, num_prefix)
    results["summary"] = in_words(results)
    patch_size = vision_config(backbone.model.config).patch_size
    pictures = draw(results, measured.examples, num_prefix, patch_size)
    return write(workdir, results, _example_names(images, measured), pictures)


def check_settings(config) -> None:
    """Raises ValueError for a setting that no model could be analysed with."""
    check_counts(config, _COUNTS)
    if config.num_examples > _MOST_EXAMPLES:
        raise ValueError(
            f"--config.num_examples={config.num_examples}: at most {_MOST_EXAMPLES} are drawn"
        )
    if config.detector not in ("norm", "attention"):
        raise ValueError(f"--config.detector must be norm or attention, got {config.detector!r}")
    image_sources(config.images)


def make_plan(config, depth) -> Plan:
    """Where to look in a model of so many blocks.

    Raises:
      ValueError: a block that the model does not have, or `first_block` after `block`.
    """
    # Massive tokens form below block 13 of the 24 of CLIP ViT-L/14, and sinks are found from 9 on.
    block = depth * 13 // 24 if config.block is None else config.block
    first_block = min(block, depth * 9 // 24) if config.first_block is None else config.first_block
    if config.blocks == "spread":
        blocks = tuple(
            sorted({*np.linspace(0, depth - 1, 4, dtype=int).tolist(), first_block, block})
        )
    else:
        blocks = parse_blocks(config.blocks, "--config.blocks")
    for number in (block, first_block, *blocks):
        check_block(number, depth)
    if first_block > block:
        raise ValueError(
            f"--config.first_block={first_block} comes after --config.block={block}, which decides"
        )
    return Plan(block, first_block, blocks, config.detector, config.max_sinks)


def views(backbone: Backbone, images, num_landmarks) -> list[Backbone]:
    """FNA and centroid attention with that many landmarks in the second half of the blocks.

    Raises:
      ValueError: more landmarks than tokens of an image, so few that no cluster is left to its
        patches, or no image that opens.
    """
    check_num_landmarks(num_landmarks, num_tokens_of(backbone, images))
    depth = vision_config(backbone.model.config).encoder.depth
    layers = f"{depth // 2}:{depth}"
    settings = dict(features="q"), dict(features="k", approximation="centroid")
    return [backbone.with_attention(FNAConfig(layers, num_landmarks, **one)) for one in settings]


def write(workdir, results, example_names, pictures) -> str:
    """Writes all files of an analysis; the text to print.

    Args:
      workdir: the folder.
      results: what goes into `analysis.json`.
      example_names: of the images that are drawn.
      pictures: of `pictures.draw`.
    """
    pngs = [(picture, picture.png()) for picture in pictures]
    for picture, png in pngs:
        write_atomically(workdir / f"{picture.name}.png", png)
    write_atomically(workdir / "analysis.json", json.dumps(results, indent=2, allow_nan=False))
    sources = ", ".join(image_sources(results["config"]["images"]))
    facts = {
        "model": results["model"],
        "images": f"{results['num_images']} of {sources}",
        "drawn": ", ".join(example_names),
        "blocks": f"0 to {len(results['norms']['median']) - 2}; tokens are judged in block "
        f"{results['block']}, sinks masked from block {results['first_block']} on; massive "
        f"means massive by {results['massive']}",
        **results["environment"],
    }
    write_atomically(workdir / "index.html", render(facts, results, pngs))
    lines = [
        headline(results),
        count_table(results),
        "\n".join(results["summary"]),
        *(printable(f"left out: {one['file']}: {one['reason']}") for one in results["skipped"]),
    ]
    files = ", ".join(f"{picture.name}.png" for picture in pictures)
    return "\n\n".join([*lines, f"Written to {workdir}: index.html, analysis.json, {files}"])


def _example_names(images, measured):
    """Names of the files that are drawn, or numbers of the scenes."""
    skipped = {error.file for error in measured.skipped}
    names = [
        f"scene {index}" if isinstance(image, np.ndarray) else str(image)
        for index, image in enumerate(images, start=1)
    ]
    return [name for name in names if name not in skipped][: len(measured.examples)]
