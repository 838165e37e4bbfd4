"""Every model of the zoo at its published size, with random weights, against its original.

    python -m benchmarks.zoo [--match dinov2]

Writes each model as its library would, converts it, and runs both on the same random images and
texts. Models that differ only in the resolution they were trained at are measured once. Needs
requirements-reference.txt; takes half an hour and 16 GB of memory on two cores.
"""

import argparse
import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import multiprocessing
import pathlib
import tempfile

import jax
import tqdm
from flax import nnx

import models.registry
from benchmarks.published import layouts_of, npz_of, write_random_checkpoint
from benchmarks.rows import matching, read_rows, write_rows
from convert.verify import verify
from evals.running.workdir import ROOT
from models.configs import image_shape
from models.llava import LLaVAConfig

LIBRARIES = {
    "transformers": "transformers",
    "timm": "timm",
    "open_clip": "open_clip_torch",
    # Of Google's, what runs their files.
    "vision_transformer": "timm",
    "big_vision": "timm",
}
MOST_PARAMETERS = 1_500_000_000  # two models of float32 in 24 GB
SHALLOW = {"encoder": {"depth": 4}}
FEWER_WORDS = 16384  # where the embeddings of all are too much
GRID = (10, 6)  # patches down and across
NUM_TOKENS = 60  # of texts for language models


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo")
    parser.add_argument("--match", default="", help="only models with this in their names")
    parser.add_argument("--resume", action="store_true", help="keep what is in the output file")
    parser.add_argument("--output", default=str(ROOT / "results" / "zoo.csv"))
    arguments = parser.parse_args(argv)
    groups = matching(arguments.match, groups_of_models(), kind="model", name_of=" ".join)
    rows = read_rows(arguments.output) if arguments.resume else []
    done = {(row["models"], row["layout"]) for row in rows}
    todo = [(names, library) for names in groups for library in libraries_of(names)]
    todo = [(names, library) for names, library in todo if (" ".join(names), library) not in done]
    for names, library in tqdm.tqdm(todo, unit="model"):
        # A process for each: what the libraries keep in memory adds up.
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn")
        ) as pool:
            rows.append(pool.submit(measure, names, library).result())
        write_rows(arguments.output, rows, torch=importlib.metadata.version("torch"))
    print(as_markdown(rows))


def groups_of_models() -> list[list[str]]:
    """All names, those together that differ in the resolution or the weights alone.

    Whether a LLaVA cuts its images into tiles is resolution, too; its family lists the tiled first.
    """
    groups = {}
    for family in models.registry.FAMILIES.values():
        for name, config in family.variants.items():
            groups.setdefault(_without_resolution(config), []).append(name)
    return list(groups.values())


def _without_resolution(config):
    if not models.registry.has_vision(config):
        return config
    vision = models.registry.vision_config(config)
    vision = dataclasses.replace(vision, image_size=vision.patch_size)
    return type(config), vision, getattr(config, "text", None), getattr(config, "decoder", None)


def libraries_of(names) -> list[str]:
    """Whose files of these models, as they are measured, an installed library runs.

    Those of open_clip tell models by name, which one of fewer blocks has not.
    """
    config, _ = _measured(names)
    return [layout.library for layout, *_ in _layouts(config)]


def _layouts(config):
    """The layouts of a model, each with the config as it computes it and what its file says."""
    published = [(layout, config, values) for layout, values in layouts_of(config)]
    return published + [(*pair, None) for pair in npz_of(config)]


def measure(names, library) -> dict:
    """A row of a library's layout: the largest difference of any stage, relative to its largest.

    Of models that differ in the resolution only, or in nothing, the first is measured.

    Args:
      names: of a group of `groups_of_models`.
      library: one of `libraries_of` them.
    """
    num_parameters = count_parameters(*models.registry.published(names[0]))
    config, blocks = _measured(names)
    size = NUM_TOKENS
    if models.registry.has_vision(config):
        vision = models.registry.vision_config(config)
        size = tuple(n * vision.patch_size for n in GRID)
        if hasattr(vision, "num_frames"):  # of whose places transformers knows squares alone
            size = size[:1] * 2
        if isinstance(config, LLaVAConfig):  # which sees images of the tower's size alone
            size = image_shape(vision)
    found = {layout.library: (layout, *rest) for layout, *rest in _layouts(config)}
    layout, config, values = found[library]
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "source"
        file = write_random_checkpoint(source, layout, config, values)
        comparisons = verify(file, sizes=[size])
    return {
        "family": layout.family,
        "models": " ".join(names),
        "parameters": num_parameters,
        "layout": library,
        "blocks": blocks,
        "image": comparisons[0].inputs,
        "stages": len(comparisons),
        "max_error": f"{max(c.error for c in comparisons):.1e}",
        "min_cosine": f"{min(c.cosine for c in comparisons):.9f}",
        "original": _version(LIBRARIES[library]),
        "date": datetime.date.today().isoformat(),
    }


def _measured(names):
    """The config that stands for these models, and how many of the blocks it has."""
    family, config = models.registry.published(names[0])
    blocks = "all"
    if count_parameters(family, config) > MOST_PARAMETERS:
        config, depth = _shallow(config)
        blocks = f"4 of {depth}"
        if hasattr(config, "decoder") and count_parameters(family, config) > MOST_PARAMETERS:
            config = _of_fewer_words(config)
            blocks += f", {FEWER_WORDS} words"
    return config, blocks


def _shallow(config):
    """The config with four blocks, and how many there were; with a decoder, in that."""
    if not models.registry.has_vision(config):
        return models.registry.override(config, SHALLOW["encoder"]), config.depth
    vision = models.registry.vision_config(config)
    of_vision = SHALLOW
    if hasattr(vision, "deepstack"):
        of_vision = SHALLOW | {"deepstack": tuple(range(len(vision.deepstack)))}
    towers = {"vision": of_vision, "text": SHALLOW, "decoder": SHALLOW["encoder"]}
    shallow = {name: part for name, part in towers.items() if hasattr(config, name)} or SHALLOW
    depth = getattr(config, "decoder", vision.encoder).depth
    return models.registry.override(config, shallow), depth


def _of_fewer_words(config):
    """The config with a part of its vocabulary, the last of which stand for images and videos."""
    marks = [name for name in ("image_token_id", "video_token_id") if getattr(config, name, None)]
    tokens = {name: FEWER_WORDS - 1 - i for i, name in enumerate(marks)}
    return models.registry.override(config, tokens | {"decoder": {"vocab_size": FEWER_WORDS}})


def count_parameters(family, config) -> int:
    """Of a model with this config."""
    state = nnx.state(models.registry.abstract_model(family.model, config))
    return sum(leaf.size for leaf in jax.tree.leaves(state))


def _version(package):
    return f"{package} {importlib.metadata.version(package)}"


def as_markdown(rows) -> str:
    """The table of docs/convert.md: one line per model, its layouts beside each other."""
    lines = [
        "| family | models | parameters | layouts | max error | date |",
        "| --- | --- | ---: | --- | ---: | --- |",
    ]
    by_models = {}
    for row in rows:
        by_models.setdefault(row["models"], []).append(row)
    for names, group in by_models.items():
        first = group[0]
        layouts = ", ".join(map(_original, group))
        errors = ", ".join(row["max_error"] for row in group)
        blocks, comma, words = first["blocks"].partition(",")
        part = "" if blocks == "all" else f" ({blocks} blocks{comma}{words})"
        lines.append(
            f"| {first['family']} | {_shortened(names.split())} | "
            f"{int(first['parameters']) / 1e6:,.0f} M | {layouts} | {errors}{part} "
            f"| {first['date']} |"
        )
    return "\n".join(lines)


def _original(row):
    """The library that a row compares with, and what it read if that is not its own."""
    name = row["original"].replace("_torch", "")
    return f"{name} (`.npz`)" if row["layout"] in ("vision_transformer", "big_vision") else name


def _shortened(names):
    """The first name, and of the others what follows what all have in common."""
    first, *others = names
    common = first.rsplit("-", 1)[0] if others and not others[0].startswith(first) else first
    endings = [name.removeprefix(common) if name.startswith(common) else name for name in others]
    return ", ".join(f"`{name}`" for name in (first, *endings))


if __name__ == "__main__":
    main()
