"""What a vision tower does with its tokens, measured image by image (arXiv 2507.16018).

Shape letters: B images of a batch, M images, N tokens, P patches, K blocks, G groups of tokens,
R rounds of masking.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx

import models
from evals.data import UnreadableImage, batches
from evals.jobs.analysis.groups import (
    grouped_attention,
    grouped_suppression,
    largest_step,
    membership,
)
from fna_jax import (
    Masking,
    artifact_tokens,
    incoming_attention,
    massive_by_attention,
    massive_by_norm,
)
from models.detectors import AttentionSinks, token_norms


@dataclasses.dataclass(frozen=True)
class Plan:
    """Where to look.

    Attributes:
      block: whose input and attention decide which tokens are massive, and sinks.
      first_block: from where sinks are masked, and attention is switched off.
      blocks: those whose attention and suppression to average.
      massive: "norm" or "attention", the detector that decides about groups and artifacts.
      max_sinks: most rounds of masking.
    """

    block: int
    first_block: int
    blocks: tuple[int, ...]
    massive: str
    max_sinks: int


class Measured(typing.NamedTuple):
    """Of M images.

    Attributes:
      images: arrays `[M, …]` by name, as in `measure_batch`.
      examples: for some images, by name, `pixels` `[height, width, 3]` as the model gets them, the
        tokens' arrays of `measure_batch`, and `promoted` `[R, N]` of `promoted`.
      skipped: the images that did not open.
    """

    images: dict
    examples: list[dict]
    skipped: list[UnreadableImage]


def measure(model, images, preprocess, plan: Plan, *, batch_size, num_examples) -> Measured:
    """Measures images, paths or arrays, batch by batch; those that do not open are left out.

    Raises:
      ValueError: no image opens, they differ in size once preprocessed, or the model gives norms
        that are not finite.
    """
    weights = nnx.split(model)
    rows, examples, skipped = [], [], []
    with tqdm.tqdm(total=len(images), desc="analyzing", unit="img", mininterval=1) as bar:
        for batch in batches(images, preprocess, batch_size, skipped=skipped):
            found = find_tokens(*weights, batch.images, plan)
            of_images, of_tokens = measure_batch(*weights, batch.images, found, plan)
            of_images["unattended"] = largest_norms_unattended(*weights, batch.images, plan)
            rows.append(batch.select(of_images))
            for index in np.flatnonzero(batch.real)[: num_examples - len(examples)]:
                tokens = {name: np.asarray(states[index]) for name, states in of_tokens.items()}
                chosen = batch.images[index : index + 1]
                steps = promoted(*weights, chosen, tokens["rank"][None], plan)
                steps = np.asarray(steps)[: tokens["rank"].max() + 1]
                examples.append(tokens | {"pixels": chosen[0], "promoted": steps})
            bar.update(int(batch.real.sum()))
    if not rows:
        raise ValueError(f"none of the {len(images)} images opens; the first: {skipped[0]}")
    measured = jax.tree.map(lambda *row: np.concatenate(row), *rows)
    if bad := int(np.sum(~np.isfinite(measured["norms"]).all(axis=(1, 2)))):
        raise ValueError(
            f"the norms of {bad} of {len(measured['norms'])} images hold NaN or infinity; check "
            "the weights (python -m convert names such tensors), or compute in float32"
        )
    return Measured(measured, examples, skipped)


@functools.partial(jax.jit, static_argnums=(0, 4))
def measure_batch(graphdef, state, images, tokens, plan: Plan):
    """What is kept of each image, `[B, …]`, and of its tokens, `[B, N]` or `[B, K, N]`.

    Of the image: `norms` `[B, 3, 1 + depth]`, the median, 99 % and maximum of the patches' norms in
    front of each block and after the last; `step` of `largest_step` in front of
    `plan.block`; `own`, what the class token gives itself there, and `average`, what a patch draws
    of it; `attention` and `suppression` by block, means over groups; `counts` by kind of token.

    Of the tokens: what `find_tokens` gave, the `norms` in front of the K blocks of the plan, and
    the attention `received` in `plan.block`.
    """
    model = nnx.merge(graphdef, state)
    num_prefix = models.vision_tower(model).num_prefix
    member = membership(tokens["massive"], tokens["artifact"], num_prefix)

    def observe(seen):
        found = {}
        if seen.block == plan.block:
            found["received"] = incoming_attention(seen.query, seen.key)
        if seen.block in plan.blocks:
            found["attention"] = grouped_attention(seen.query, seen.key, member)
            found["suppression"] = grouped_suppression(seen.x, seen.value, seen.out_kernel, member)
        return found

    seen = model(images, capture=models.Capture(norms=True, observe=observe)).captured
    of_blocks = lambda name: {block: seen.observed[block][name] for block in plan.blocks}
    norms = jnp.maximum(seen.norms, 1e-6)  # for logarithms
    patches = norms[..., num_prefix:]  # [1 + depth, B, P]
    quantiles = jnp.quantile(patches, jnp.array([0.5, 0.99, 1]), axis=-1)
    proxy = tokens["proxy"]
    own = 1 / jnp.sum(proxy, axis=-1)  # for what the class token gives sums to one
    of_images = {
        "norms": jnp.moveaxis(quantiles, -1, 0),
        "step": largest_step(patches[plan.block]),
        "own": own,
        "average": own * jnp.mean(proxy[:, num_prefix:], axis=-1),
        "attention": of_blocks("attention"),
        "suppression": of_blocks("suppression"),
        "counts": counts(tokens),
    }
    of_tokens = tokens | {
        "norms": jnp.moveaxis(norms[jnp.array(plan.blocks)], 1, 0),
        "received": seen.observed[plan.block]["received"],
    }
    return of_images, of_tokens


# A program of its own, as the next: in one their attention matrices would lie side by side.
@functools.partial(jax.jit, static_argnums=(0, 3))
def find_tokens(graphdef, state, images, plan: Plan) -> dict:
    """Kinds of tokens, each `[B, N]`: the class token's `proxy`, the `rank` of sinks, and the sets
    `by_norm`, `by_attention`, `massive` (one of the two) and `artifact`."""
    tower = models.vision_tower(nnx.merge(graphdef, state))
    x = tower.advance(tower.embed(images), images, 0, plan.first_block)
    norms = token_norms(tower.advance(x, images, plan.first_block, plan.block))
    proxy = tower.probe(x, images, plan.first_block, plan.block)
    sinks = AttentionSinks(plan.first_block, plan.block, plan.max_sinks)
    rank = sinks.ranks(tower, x, images, plan.first_block)
    by_norm = massive_by_norm(norms, num_prefix=tower.num_prefix)
    by_attention = massive_by_attention(proxy, num_prefix=tower.num_prefix)
    massive = {"norm": by_norm, "attention": by_attention}[plan.massive]
    return {
        "proxy": proxy,
        "rank": rank,
        "by_norm": by_norm,
        "by_attention": by_attention,
        "massive": massive,
        "artifact": artifact_tokens(rank, massive),
    }


def counts(tokens) -> dict:
    """How many tokens of each kind an image has, int `[B]` each, from those of `find_tokens`."""
    by_norm, by_attention = tokens["by_norm"], tokens["by_attention"]
    kinds = {
        "massive by norm": by_norm,
        "massive by attention": by_attention,
        "massive by both": by_norm & by_attention,
        "attention sinks": tokens["rank"] > 0,
        "artifacts": tokens["artifact"],
    }
    return {kind: jnp.sum(which, axis=-1) for kind, which in kinds.items()}


@functools.partial(jax.jit, static_argnums=(0, 3))
def largest_norms_unattended(graphdef, state, images, plan: Plan):
    """The largest norm of a patch with attention switched off from a block on, `[B, 1 + depth]`."""
    model = nnx.merge(graphdef, state)
    tower = models.vision_tower(model)
    blocks = range(plan.first_block, len(tower.encoder.blocks))
    silenced = models.with_interventions(model, {block: Masking("X->X") for block in blocks})
    norms = silenced(images, capture=models.Capture(norms=True)).captured.norms
    return jnp.max(norms[..., tower.num_prefix :], axis=-1).T


@functools.partial(jax.jit, static_argnums=(0, 4))
def promoted(graphdef, state, image, rank, plan: Plan):
    """The class-token proxy after masking the strongest 0, 1, 2, … sinks, `[R, N]`.

    For an image `[1, height, width, 3]` with sinks of rank `[1, N]`; R is one more than the sinks
    that there can be.
    """
    tower = models.vision_tower(nnx.merge(graphdef, state))
    x = tower.advance(tower.embed(image), image, 0, plan.first_block)

    def masking(number):
        unread = (rank > 0) & (rank <= number)
        return tower.probe(x, image, plan.first_block, plan.block, unread)[0]

    rounds = min(plan.max_sinks, x.shape[1] - tower.num_prefix)
    return jax.lax.map(masking, jnp.arange(rounds + 1))
