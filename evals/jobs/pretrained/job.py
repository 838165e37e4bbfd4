"""A real model on photographs: what each attention changes, and its speed, point by point."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from evals.data.photographs import photographs
from evals.jobs.arms import Arm, make_arms
from evals.jobs.cost import reduced_cost, vision_cost
from evals.jobs.opening import check_num_landmarks, num_tokens_of, open_named, run_jobs
from evals.jobs.settings import check_choice, check_counts
from evals.jobs.sweep.job import speeds
from evals.running.devices import data_parallel, joined, over_batches
from evals.running.pretrained import Backbone, local_source
from evals.tasks.saliency.comparison import map_agreement, token_errors
from evals.tasks.saliency.decoder import Decoder, load_decoder
from fna_jax.config import config_by_block
from models.registry import vision_config, vision_tower


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a run compares attentions with.

    Attributes:
      backbone: the model, with exact attention.
      decoder: its decoder of saliency, if it has one.
      files: of the photographs.
      batch_size: photographs per step.
    """

    backbone: Backbone
    decoder: Decoder | None
    files: list
    batch_size: int

    def tokens(self, arm, size, files=None):
        """float32 `[M, N, C]`: the model's output for squares of `size` pixels.

        Of a smaller image the patches are resized to the grid of a whole one.
        """
        tokens = self._run(output_tokens, arm, size, self.files if files is None else files)
        return tokens if arm.pixels is None else resized_patches(tokens, *self._grid(size))

    def compared(self, arm, size):
        """Exact attention's tokens, and each layer's error `[M, L]` on exact attention's inputs."""
        return self._run(_compared, arm, size, self.files)

    def maps(self, tokens, size):
        """float32 `[M, size, size]`: what people look at, by these tokens `[M, N, C]`."""
        prefix, side = self._grid(size)
        split = nnx.split(self.decoder)
        maps = [_decoded(*split, x[None, prefix:], (side, side), (size, size)) for x in tokens]
        return np.concatenate(maps)

    def _grid(self, size):
        """How many tokens are in front of the patches, and patches on a side."""
        model = self.backbone.model
        return vision_tower(model).num_prefix, size // vision_config(model.config).patch_size

    def _run(self, function, arm, size, files):
        view = dataclasses.replace(arm, image_size=size).view(self.backbone)
        run = data_parallel(function, view.model)
        options = dict(rng=_key(arm), workers=0, desc=f"{arm.name}, {size} px")
        parts = over_batches(run, files, view.preprocess, self.batch_size, **options)
        return joined(list(parts))[1]


def compare_attentions(config: ml_collections.ConfigDict, workdir) -> dict:
    """Errors of every arm at every size, and the speed of all; each kept in `workdir`.

    Returns:
      A dictionary: `points` (records of arms, task "errors", and of speeds, "speed", each with its
      `image_size`), `photographs`, `num_tokens` by image size, `model`, `config`, `environment`.

    Raises:
      FileNotFoundError, ValueError: a model, photographs or settings that cannot be used, or a
        `workdir` of a run with other settings.
    """
    bench, arms = open_bench(config)
    num_tokens = {str(size): _checked_num_tokens(bench, arms, size) for size in config.image_sizes}
    jobs, exact = [], functools.cache(functools.partial(bench.tokens, Arm()))
    for size in config.image_sizes:
        # Speeds first, while nothing is compiled: their time of compiling is part of the record.
        sized = [dataclasses.replace(arm, image_size=size) for arm in arms]
        jobs.append((f"{size}-px", "speed", functools.partial(_speeds, bench, sized, config)))
        for arm in arms[1:]:
            run = functools.partial(_errors, bench, arm, size, exact)
            jobs.append((arm.name, f"errors-{size}", run))
    results = run_jobs(jobs, bench.backbone, config, workdir)
    names = [file.stem for file in bench.files]
    return results | {"photographs": names, "num_tokens": num_tokens}


def open_bench(config) -> tuple[Bench, list[Arm]]:
    """What a config names, and its arms, exact attention first; errors as `compare_attentions`."""
    _check_settings(config)
    files = photographs(config.half)[: config.num_photographs]
    backbone = open_named(config)
    decoder = load_decoder(local_source(config.model)) if config.model else None
    arms = make_arms(config.fna, vision_config(backbone.model.config).encoder.depth)
    if any(arm.drops for arm in arms) and not vision_tower(backbone.model).num_prefix:
        raise ValueError(
            f"--config.fna.methods={config.fna.methods}: where tokens are dropped there is only a "
            f"class token to compare, and {backbone.name} has none"
        )
    return Bench(backbone, decoder, files, config.batch_size), arms


def output_tokens(model, images, rng):
    """float32 `[B, N, C]`, of the model's vision tower."""
    return vision_tower(model)(images, rng=rng).tokens.astype(jnp.float32)


def resized_patches(tokens, num_prefix, side) -> np.ndarray:
    """Tokens `[M, N, C]` with a square grid of patches resized, bilinearly, to `side` on a side."""
    own = math.isqrt(tokens.shape[1] - num_prefix)
    patches = tokens[:, num_prefix:].reshape(len(tokens), own, own, -1)
    shape = (len(tokens), side, side, tokens.shape[-1])
    patches = jax.image.resize(patches, shape, "bilinear", antialias=False)
    patches = np.asarray(patches).reshape(len(tokens), side**2, -1)
    return np.concatenate([tokens[:, :num_prefix], patches], axis=1)


def _compared(model, images, rng):
    exact = vision_tower(model)(images, rng=rng, compare=True)  # runs exactly
    return exact.tokens.astype(jnp.float32), exact.attention_error.T


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _decoded(graphdef, state, patches, grid, image_shape):
    return nnx.merge(graphdef, state)(patches, grid, image_shape)


def _errors(bench, arm, size, exact_tokens):
    """Errors of the output, and of each approximated layer; of dropped tokens there are none.

    `exact_tokens`: a function of the size, asked where no layer is compared.
    """
    layers = {}
    if arm.fnas:
        exact, by_layer = bench.compared(arm, size)
        blocks = sorted(config_by_block(arm.fnas))
        layers["layer_errors"] = {
            str(block): by_layer[:, i].tolist() for i, block in enumerate(blocks)
        }
    else:
        exact = exact_tokens(size)
    tokens = bench.tokens(arm, size)
    record = token_errors(tokens, exact, vision_tower(bench.backbone.model).num_prefix)
    if arm.drops:
        del record["patch_error"]
    elif bench.decoder is not None:
        record |= map_agreement(bench.maps(tokens, size), bench.maps(exact, size))
    return {"task": "errors", "image_size": size, **record, **layers}


def _speeds(bench, arms, config):
    run = (arms, bench.backbone, bench.files, config.batch_size, config.repeats, output_tokens)
    counted = {arm.name: _counted(bench, arm) for arm in arms}
    return speeds(*run) | {"image_size": arms[0].image_size, "giga_multiply_adds": counted}


def _counted(bench, arm):
    """Billions of multiply-adds of the vision blocks for one image."""
    view = arm.view(bench.backbone)
    num_tokens, tower = num_tokens_of(view, bench.files), vision_tower(view.model)
    encoder = tower.config.encoder
    if arm.reduction is not None:
        return 1e-9 * reduced_cost(encoder, num_tokens, tower.num_prefix, arm.reduction)
    return 1e-9 * vision_cost(encoder, num_tokens, arm.fnas).total


def _key(arm):
    return None if arm.seed is None else jax.random.key(arm.seed)


def _checked_num_tokens(bench, arms, size):
    """N at an image size; raises ValueError for a size, or settings, that the model cannot run."""
    patch_size = vision_config(bench.backbone.model.config).patch_size
    if size % patch_size:
        raise ValueError(
            f"--config.image_sizes: {size} is no multiple of the patch size {patch_size}"
        )
    views = [dataclasses.replace(arm, image_size=size).view(bench.backbone) for arm in arms]
    num_tokens = num_tokens_of(views[0], bench.files)
    for fna in itertools.chain(*(arm.fnas for arm in arms)):
        check_num_landmarks(fna.num_landmarks, num_tokens, of=f"an image of {size} pixels")
    return num_tokens


def _check_settings(config):
    """Raises ValueError for a number out of range or a repetition."""
    check_counts(config, ("num_photographs", "num_pictures", "batch_size", "repeats"))
    check_choice(config.image_sizes, "image_sizes")
    for name in ("methods", "num_landmarks", "kept", "seeds"):
        check_choice(config.fna[name], f"fna.{name}")
