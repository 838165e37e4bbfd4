"""What FNA gains on this device, measured: for one model at one image size, and for one layer."""

import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import models
from evals.jobs.arms import METHOD_NAMES, blocks_of, settings_of
from evals.jobs.cost import WORTH, vision_cost
from evals.jobs.language_cost import language_advice, language_report
from evals.jobs.opening import check_num_landmarks, open_named
from evals.jobs.settings import check_counts
from evals.jobs.tuned import TUNED, read_tuned
from evals.running.pretrained import EMBEDDED_MODEL, config_of, open_model
from evals.running.timing import time_in_turns
from evals.running.workdir import ROOT, claim_workdir, environment, write_atomically
from models.attends import ApproximateAttention, Attended, attend_exactly
from models.configs import DTYPES
from models.decoder import DecoderConfig

_CACHED = 256  # landmarks that could stay in a language model's cache
_MOST = 100_000  # pixels, patches of a side, or landmarks


def speed_report(config, workdir) -> str:
    """Measures, writes `speed.json` into `workdir`, and returns the text to print.

    Raises:
      FileNotFoundError, ValueError: a model or settings that cannot be used.
    """
    _check_settings(config)
    model_config = _config_of(config)
    language = getattr(model_config, "decoder", model_config)
    language = language if isinstance(language, DecoderConfig) else None
    if language is model_config:
        return language_report(language, config, workdir, _CACHED)
    model = _open(config)
    tower = models.vision_tower(model)
    images = jnp.ones((config.batch_size, *_image_size(config, model), 3), jnp.float32)
    num_tokens = jax.eval_shape(tower.embed, images).shape[1]
    fnas = _fna_settings(config, model, num_tokens)
    tuned = _tuned_settings(config, model, num_tokens)
    folder = claim_workdir(config, workdir)
    arms = _time_model(model, images, fnas | tuned, config.repeats)
    encoder = tower.config.encoder
    layers = [_time_layer(model.config, tower, side, fnas, config) for side in config.grids]
    record = {
        "model": config.model or str(EMBEDDED_MODEL.relative_to(ROOT)),
        "image_size": list(images.shape[1:3]),
        "num_tokens": num_tokens,
        "batch_size": config.batch_size,
        "dtype": model.config.dtype,
        "fna_blocks": list(next(iter(fnas.values())).layers),
        "attention_share": max(0.0, 1 - 1 / arms["no attention"]["speedup"]),
        "arms": arms,
        "layers": layers,
        "environment": environment(),
    }
    for name, fna in (fnas | tuned).items():
        if name in arms:
            arms[name]["counted_speedup"] = vision_cost(encoder, num_tokens, fna).speedup
    record["advice"] = advice(record)
    if language is not None:
        record["advice"] += f" {language_advice(language, config.num_tokens, _CACHED)}"
    write_atomically(folder / "speed.json", json.dumps(record, indent=2))
    return f"{_text(record)}\n\nWritten to {folder}: speed.json"


def advice(record) -> str:
    """One honest sentence or two from the numbers of a run."""
    fast = {name: arm for name, arm in record["arms"].items() if "counted_speedup" in arm}
    if not fast:
        return "No FNA setting fits into the memory here: take a smaller --config.batch_size."
    best = max(fast, key=lambda name: fast[name]["speedup"])
    gain, share = fast[best]["speedup"], 100 * record["attention_share"]
    here = f"at {record['num_tokens']:,} tokens attention takes {share:.0f} % of the time"
    if gain >= WORTH:
        return (
            f"{best} makes this model {gain:.2f} times faster here: {here}. "
            "What it costs in accuracy, --config eval.py tells."
        )
    return f"Don't: {here}, and no FNA setting makes the model {WORTH} times faster."


def break_even(layers, name) -> tuple[int | None, int | None]:
    """The most tokens at which one layer of FNA is not faster, and the next number from which on
    it is; None for a side that was not timed."""
    gains = {
        layer["tokens"]: layer["speedup"][name] for layer in layers if name in layer["speedup"]
    }
    slower = max((tokens for tokens, gain in gains.items() if gain <= 1), default=None)
    return slower, min((n for n in gains if slower is None or n > slower), default=None)


def _break_even_text(layers, name):
    slower, faster = break_even(layers, name)
    if faster is None:
        return f"{name}: beyond {slower:,} tokens"
    return f"{name}: {'below' if slower is None else f'between {slower:,} and'} {faster:,} tokens"


def _text(record):
    height, width = record["image_size"]
    environment = record["environment"]
    lines = [
        f"model: {record['model']}, {record['dtype']}, {record['batch_size']} image(s) of "
        f"{height} × {width} pixels, {record['num_tokens']:,} tokens; {environment['device']}, "
        f"jax {environment['jax']}; FNA in blocks {record['fna_blocks']}",
        "",
        "| vision tower | ms | quartiles | times faster | by counting | compile s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, arm in record["arms"].items():
        counted = f"{arm['counted_speedup']:.2f}" if "counted_speedup" in arm else ""
        low, high = arm["quartiles_ms"]
        lines.append(
            f"| {name} | {arm['ms']:.1f} | {low:.1f} to {high:.1f} | {arm['speedup']:.2f} "
            f"| {counted} | {arm['compile_s']:.1f} |"
        )
    names = [name for name, arm in record["arms"].items() if "counted_speedup" in arm]
    lines += ["", f"| one attention layer, ms | exact | {' | '.join(names)} |"]
    lines += ["| --- | ---: |" + " ---: |" * len(names)]
    for layer in record["layers"]:
        times = [layer["ms"].get(name) for name in ("exact", *names)]
        cells = " | ".join("" if time is None else f"{time:.2f}" for time in times)
        lines.append(f"| {layer['tokens']:,} tokens | {cells} |")
    timed = [name for name in names if any(name in layer["ms"] for layer in record["layers"])]
    even = "; ".join(_break_even_text(record["layers"], name) for name in timed)
    even = [f"One layer breaks even with {even}.", ""] if even else []
    return "\n".join([*lines, "", *even, record["advice"]])


def _time_model(model, images, fnas, repeats):
    """Times of the vision tower with each attention, and with none: what is left to the rest."""
    views = {"exact": model} | {
        name: models.with_attention(model, fna) for name, fna in fnas.items()
    }
    arms = {name: _blocking(_run, *nnx.split(view), images) for name, view in views.items()}
    arms["no attention"] = _blocking(run_without_attention, *nnx.split(model), images)
    timings = time_in_turns(arms, repeats=repeats, progress="model")
    if missing := {"exact", "no attention"} - timings.keys():
        raise ValueError(
            f"the model does not run ({' and '.join(sorted(missing))}): out of memory? Take a "
            "smaller --config.batch_size or --config.image_size"
        )
    return {
        name: {
            "ms": 1000 * timing.median,
            "quartiles_ms": (1000 * np.quantile(timing.seconds, [0.25, 0.75])).tolist(),
            "speedup": timing.speedup(timings["exact"]),
            "compile_s": timing.compile_seconds,
        }
        for name, timing in timings.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, state, images):
    return models.vision_tower(nnx.merge(graphdef, state))(images).pooled


@functools.partial(jax.jit, static_argnums=0)
def run_without_attention(graphdef, state, images):
    """All but the attention matrices: the projections stay."""
    tower = models.vision_tower(nnx.merge(graphdef, state))
    attend = lambda x, query, key, value, landmarks: Attended(query + key + value, landmarks)
    return run_with(attend, tower, images)[1]


def run_with(attend, tower, images):
    """A vision tower's tokens `[B, N, C]` and pooled state with one attention in all its blocks."""
    attends = tower.position_attends([attend] * len(tower.encoder.blocks), images)
    return tower.finish(tower.encoder(tower.embed(images), attends)[0])


def _time_layer(model_config, tower, side, fnas, config):
    """Milliseconds of one attention layer on a square grid, choice of landmarks included."""
    encoder, num_tokens = tower.config.encoder, tower.num_prefix + side**2
    heads = encoder.num_heads
    shape = (3, config.batch_size, num_tokens, heads, encoder.width // heads)
    states = jax.random.normal(jax.random.key(0), shape, model_config.dtype)
    x = states[0].reshape(*shape[1:3], -1)
    arms = {"exact": _blocking(_layer, attend_exactly, x, *states)}
    of_tower = dict(place=0, grid=(side, side), num_prefix=tower.num_prefix, rng=None)
    for name, fna in fnas.items():
        if fna.num_landmarks < num_tokens:
            attend = ApproximateAttention(fna, **of_tower, compare=False)
            arms[name] = _blocking(_layer, attend, x, *states)
    timings = time_in_turns(arms, repeats=config.repeats, progress=f"{num_tokens} tokens")
    if "exact" not in timings:
        return {"tokens": num_tokens, "ms": {}, "speedup": {}}
    return {
        "tokens": num_tokens,
        "ms": {name: 1000 * timing.median for name, timing in timings.items()},
        "speedup": {name: timing.speedup(timings["exact"]) for name, timing in timings.items()},
    }


@functools.partial(jax.jit, static_argnums=0)
def _layer(attend, x, query, key, value):
    return attend(x, query, key, value, (None,)).out


def _blocking(function, *arguments):
    return lambda: jax.block_until_ready(function(*arguments))


def _config_of(config):
    """The model's config, without its weights."""
    if config.model not in models.list_models():
        return open_named(config, config_of)
    if config.revision is not None:
        raise ValueError(f"--config.revision is for the hub, but {config.model} is random")
    return models.registry.published(config.model)[1]


def _open(config):
    """The model in the dtype asked for; by a name of the zoo with random weights, and of a language
    model's blocks as few as there can be."""
    if config.model in models.list_models():
        changes = (
            {} if config.dtype is None else {"dtype": config.dtype, "param_dtype": config.dtype}
        )
        changes |= fewest_blocks(models.registry.published(config.model)[1])
        return models.create(config.model, rngs=nnx.Rngs(0), **changes)
    model, _ = open_named(config, open_model)
    if config.dtype is None:
        return model
    changed = dataclasses.replace(model.config, dtype=config.dtype, param_dtype=config.dtype)
    graphdef, abstract = nnx.split(models.registry.abstract_model(type(model), changed))
    return nnx.merge(
        graphdef, jax.tree.map(lambda x, like: x.astype(like.dtype), nnx.state(model), abstract)
    )


def fewest_blocks(model_config) -> dict:
    """The changes to a config that leave its language model, if it has one, as few blocks as can be
    behind its tower."""
    if not hasattr(model_config, "decoder"):
        return {}
    added = getattr(model_config.vision, "deepstack", ())
    return {"decoder": {"depth": max(1, len(added))}}


def _image_size(config, model):
    own = models.registry.vision_config(model.config).image_size
    return tuple(pixels or own for pixels in config.image_size)


def _fna_settings(config, model, num_tokens):
    """By name the settings of each method and number of landmarks below that of the tokens."""
    depth = len(models.vision_tower(model).encoder.blocks)
    numbers = [number for number in config.fna.num_landmarks if number < num_tokens]
    if not numbers:
        raise ValueError(
            f"--config.fna.num_landmarks={config.fna.num_landmarks}: none is below the "
            f"{num_tokens} tokens of an image"
        )
    options = {
        "layers": blocks_of(config.fna.layers, depth),
        "features": config.fna.features,
        "resample": config.fna.resample,
    }
    fnas = {}
    for method, number in itertools.product(config.fna.methods, numbers):
        fna = settings_of(method, config.fna.centroid, num_landmarks=number, **options)
        models.with_attention(model, fna)  # knows the blocks
        fnas[f"{METHOD_NAMES[method]}, S = {number}"] = fna
    return fnas


def _tuned_settings(config, model, num_tokens):
    """The settings that were tuned for this model by their name; nothing without any."""
    if config.fna.tuned is None:
        return {}
    tuned = read_tuned(config.fna.tuned, len(models.vision_tower(model).encoder.blocks))
    models.with_attention(model, tuned)  # knows the class token
    for fna in tuned:
        check_num_landmarks(fna.num_landmarks, num_tokens)
    return {TUNED: tuned}


def _check_settings(config):
    """Raises ValueError for a number out of range or an unknown dtype."""
    check_counts(config, ("batch_size", "repeats", "num_tokens"))
    for name, numbers in (
        ("image_size", config.image_size),
        ("grids", config.grids),
        ("fna.num_landmarks", config.fna.num_landmarks),
    ):
        if not all(isinstance(number, int) and number < _MOST for number in numbers):
            raise ValueError(f"--config.{name} must be integers below {_MOST}, got {numbers}")
    if len(config.image_size) != 2 or min(config.image_size) < 0:
        raise ValueError(
            f"--config.image_size must be height and width, as in '(448, 448)', "
            f"got {config.image_size}"
        )
    if not config.grids or min(config.grids) < 1:
        raise ValueError(f"--config.grids must be sides of at least 1, got {config.grids}")
    if "random" in config.fna.methods:
        raise ValueError("--config.fna.methods: random landmarks cost next to nothing; time 'fps'")
    if config.dtype not in (None, *DTYPES):
        raise ValueError(f"--config.dtype must be one of {', '.join(DTYPES)}, got {config.dtype!r}")
