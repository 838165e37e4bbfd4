"""What the arms of a run of questions cost: time to a token, and bytes of the cache."""

import functools
import math

import jax
import numpy as np

from evals.running.timing import time_in_turns
from models.generation import read_prompt


def speeds(bench, arms, repeats) -> dict:
    """By arm, for the first batch: milliseconds to its first tokens, the images' part among them,
    and then for each token more; and bytes of the cache that a prompt leaves.

    What does not fit into the memory has no time.
    """
    prompts, most = bench.first_prompts(), bench.max_new_tokens
    views = {arm.name: arm.tower.view(bench.backbone) for arm in arms}

    def writing(arm, number):
        run = functools.partial(bench.written, views[arm.name], arm, prompts)
        return lambda: jax.block_until_ready(run(max_new_tokens=number))

    numbers = (1, most) if most > 1 else (1,)
    runs = {f"{arm.name} {n}": writing(arm, n) for arm in arms for n in numbers}
    timings = time_in_turns(runs, repeats=repeats, progress="speed")
    first, following = {}, {}
    for arm in arms:
        times = [timings[run].seconds for n in numbers if (run := f"{arm.name} {n}") in timings]
        if times:
            first[arm.name] = 1000 * float(np.median(times[0]))
        if len(times) > 1:
            following[arm.name] = 1000 * float(np.median(times[1] - times[0])) / (most - 1)
    return {
        "task": "speed",
        "first_token_ms": first,
        "next_token_ms": following,
        "cache_bytes": {
            arm.name: cache_bytes(bench, views[arm.name], arm, prompts) for arm in arms
        },
    }


def cache_bytes(bench, view, arm, prompts) -> int:
    """Of keys and values that a prompt of the batch leaves for its answer."""
    settings = arm.settings(prompts)
    tower = dict(rng=settings.pop("rng"), dropping=settings.pop("dropping"))

    def left():
        embeddings, others = bench.reader.embed(view.model, prompts, **tower)
        return read_prompt(view.model.decoder, embeddings, **others, **settings)[1]

    kept = [x for layer in jax.eval_shape(left).layers for x in (layer.key, layer.value)]
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in kept) // len(prompts.tokens)
