"""Attention layers and whole towers on TPUs, by their compiler: none is needed, none measured.

    pip install -r requirements-tpu.txt
    python -m benchmarks.tpu [--parts layers towers] [--match FNA] [--resume]

libtpu compiles each arm ahead of time. `estimate_us` is made from the instructions it gives, as
`benchmarks.estimate` says, whose limits hold: nothing ran, and what has thousands of operations is
flattered. `temporary_mb` is what the compiled program allocates, `floor_us` the time of its
arguments and results alone at the full bandwidth of HBM, `collectives_mb` what one chip of a slice
receives; `compiles` is yes, or the error. `before_us` is of the code before it was tuned for TPUs.

"sampled" arms choose their landmarks on the queries averaged over heads, centroid attention its
clusters on the keys likewise, by two steps of k-means from windows. Windows of a near field have
8 × 8 patches.
Flash and splash attention are those of jax.experimental.pallas, their padding included. "split"
arms have their images, or the tokens of each, on the four chips of a slice of 2 × 2; times of
collectives are not in the estimate.
Towers are for one image, approximate in the second half of their blocks unless it says all. Of a
tower two of fewer blocks are compiled, `compiled_blocks`, half of them approximate, and the columns
lie on the line through theirs, as a whole tower takes minutes (`--whole`). A test holds that line
to one small model compiled whole, six blocks of dinov3-vit-s-16 at 256 px, exact and with FNA: the
estimate and the floor are within 2 %. Centroid attention and the towers estimated here were not
compared.

Rows of the output file that are not made anew stay. All of it takes hours: `--resume` goes on.
"""

import argparse
import functools
import itertools
import pathlib

import tqdm

from benchmarks import tpu_arms, tpu_compiler
from benchmarks.rows import matching, read_rows, write_rows
from evals.jobs.tables import markdown_table
from evals.running.workdir import ROOT
from models import registry

BEFORE = ROOT / "results" / "tpu_before.csv"  # of the code of commit 8d73fd2
_KEY = ("arm", "chip", "tokens", "batch", "landmarks", "dtype")  # what a row is of
_ON_A_LINE = ("estimate_us", "floor_us", "temporary_mb", "operations", "guessed", "collectives_mb")
SHORT = (2, 4)  # blocks of what is compiled for a tower
_MAIN = (
    *("exact", "exact, Pallas flash", "FNA, landmarks given", "FNA, q sampled"),
    *("centroids, k-means", "centroids, k-means, near own"),
)
_ALL = (
    *(*_MAIN, "exact, jax.nn", "exact, Pallas splash"),
    *("sampling alone, 64 features", "sampling alone, 1,024 features"),
)
_LAYER = dict(chips=("v5e",), tokens=(1025, 4097, 16385), landmarks=64, dtype="bfloat16")
PARTS = {
    "layers": _LAYER | dict(tokens=(1025, 4097, 16385, 65537), arms=_ALL),
    "chips": _LAYER | dict(chips=("v6e", "v5p"), arms=_MAIN),
    "float32": _LAYER | dict(dtype="float32", arms=_MAIN),
    "landmarks": _LAYER | dict(landmarks=256, arms=_MAIN[2:]),
    "batch split": _LAYER | dict(arms=_MAIN[2:], split="batch"),
    "tokens split": _LAYER | dict(tokens=(4096, 16384), arms=_MAIN[3:5], split="tokens"),
    "towers": dict(
        models={
            "clip-vit-l-14": (448, 896),
            "dinov2-vit-l-14": (1036,),
            **{name: (1024, 2048, 4096) for name in ("dinov3-vit-b-16", "dinov3-vit-l-16")},
        },
        arms=("exact", "FNA", "centroid", "centroid, all blocks"),
    ),
}


def main(argv=None):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tpu")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--match", default="", help="only arms with this in their names")
    parser.add_argument("--resume", action="store_true", help="only what the output file lacks")
    parser.add_argument("--whole", action="store_true", help="compile all blocks of towers")
    parser.add_argument("--output", default=str(ROOT / "results" / "tpu.csv"))
    arguments = parser.parse_args(argv)
    before = {_key(row): row["estimate_us"] for row in read_rows(BEFORE)}
    places = {_key(labels): place for place, (labels, _) in enumerate(jobs(PARTS))}
    output = pathlib.Path(arguments.output)
    rows = {_key(row): row for row in read_rows(output)} if output.exists() else {}
    every = jobs(arguments.parts, whole=arguments.whole)
    todo = matching(arguments.match, every, kind="arm", name_of=lambda job: job[0]["arm"])
    todo = [job for job in todo if not (arguments.resume and _key(job[0]) in rows)]
    for labels, build in tqdm.tqdm(todo, unit="program"):
        key = _key(labels)
        row = labels | build()
        rows[key] = row | {"before_us": before.get(key, "")}
        ordered = sorted(rows, key=lambda key: places.get(key, len(places)))
        write_rows(output, [rows[key] for key in ordered])  # what is done stays
    print(as_markdown(rows.values()))


def as_markdown(rows) -> str:
    """A line for each row: what it takes, and the time of its arguments and results alone."""
    names = ("arm", "chip", "tokens", "estimate_us", "before_us", "floor_us", "temporary_mb")
    lines = [[str(row.get(name, "")) for name in (*names, "operations")] for row in rows]
    return markdown_table([*names, "operations"], lines)


def _key(row):
    return tuple(str(row[name]) for name in _KEY)


def jobs(parts, *, whole=False) -> list[tuple]:
    """What each row is of, and a function that makes its other columns.

    Args:
      parts: names of `PARTS`.
      whole: whether all blocks of a tower are compiled.
    """
    made = []
    for part in (PARTS[name] for name in parts):
        made += _towers(**part, whole=whole) if "models" in part else _layers(**part)
    return made


def _layers(chips, tokens, landmarks, dtype, arms, split=None):
    """Jobs of one layer each, for four images, which are `split` over chips or whose tokens are."""
    options = dict(batch=4, landmarks=landmarks, dtype=dtype)

    def build(chip, size, arm):
        if split == "tokens":
            program = *tpu_arms.split_arms(size, chip, **options)[arm], tpu_arms.TOKENS
        else:
            program = tpu_arms.layer_arms(size, **options)[arm]
            program = *program, tpu_arms.BATCH if split else None
        return tpu_compiler.compile_for(chip, *program)

    for chip, size, arm in itertools.product(chips, tokens, arms):
        label = f"{arm}, {split} split" if split else arm
        labels = dict(arm=label, chip=chip, tokens=size, **options)
        yield labels, functools.partial(build, chip, size, arm)


def _towers(models, arms, whole):
    """Jobs of one vision tower each, for one image."""
    options = dict(batch=1, landmarks=64, dtype="bfloat16")

    def build(model, pixels, arm):
        def of_depth(depth):
            arms = tpu_arms.tower_arms(model, pixels, depth=depth, **options)
            return tpu_compiler.compile_for("v5e", *arms[arm])

        depth = depth_of(model)
        if whole:
            return of_depth(depth) | {"compiled_blocks": depth}
        return at_depth(depth, {blocks: of_depth(blocks) for blocks in SHORT})

    for model, sides in models.items():
        for pixels, arm in itertools.product(sides, arms):
            labels = dict(arm=f"{model}, {pixels:,} px: {arm}", chip="v5e", tokens="", **options)
            yield labels, functools.partial(build, model, pixels, arm)


def depth_of(model) -> int:
    """Blocks of a published model's vision tower."""
    _, config = registry.published(model)
    return registry.vision_config(config).encoder.depth


def at_depth(depth, rows) -> dict:
    """The columns of a tower, on the line through those of two that have fewer blocks.

    Args:
      depth: of the tower.
      rows: of the two, by their numbers of blocks.
    """
    (less, few), (more, many) = rows.items()
    blocks = {"compiled_blocks": f"{less} and {more}"}
    if failed := [row for row in (few, many) if row["compiles"] != "yes"]:
        return failed[0] | blocks
    steps = (depth - more) / (more - less)
    line = lambda name: many[name] + steps * (many[name] - few[name])
    numbers = {name: round(line(name), 2) for name in many if name in _ON_A_LINE}
    seconds = round(few["compile_s"] + many["compile_s"], 1)
    return many | numbers | blocks | {"compile_s": seconds}


if __name__ == "__main__":
    main()
