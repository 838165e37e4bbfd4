"""Contrastive training of a CLIP on digit scenes (arXiv 2103.00020; token dropping 2212.00794)."""

import functools
import json
import tempfile

import jax
import jax.numpy as jnp
import ml_collections
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

import models
from evals.data import digit_scenes
from evals.jobs.settings import check_counts
from evals.running.devices import AXIS, own_slots, put
from models.clip import CLIP, similarity
from models.inputs.tokenizer import load_tokenizer
from models.vit import attend_exactly
from training import steps
from training.companions import normalise, write_companions

_MAX_LOGIT_SCALE = 100.0  # CLIP §2.5
# Fewest and most digits of the scenes of a step, in turns: among scenes with as many digits as
# one's own only the digits tell the right caption, so that they are learned sooner.
_NUM_DIGITS = ((1, 1), (2, 2), (3, 3), (4, 4), (1, 4))


def training_report(config, workdir) -> str:
    """Trains, and returns the record of `train` as text."""
    return json.dumps(train(config, workdir), indent=2)


def train(config: ml_collections.ConfigDict, workdir) -> dict:
    """Trains the model of `config`, saves it to `workdir/model`, and returns the record.

    The data of a step depend on the seed and the step alone, so that a run that was killed goes on
    as `steps.run` says.

    Raises:
      ValueError: settings out of range, or `workdir` holds a run with others.
    """
    check_settings(config)
    graphdef, state = nnx.split(_model_and_optimizer(config))
    with tempfile.TemporaryDirectory() as folder:
        companions = write_companions(folder)
        tokenize = load_tokenizer(
            folder,
            context_length=config.model.text.context_length,
            vocab_size=config.model.text.vocab_size,
        )

        def save(state, path):
            model, _ = nnx.merge(graphdef, state)
            models.save(model, path, companions=companions)

        update = functools.partial(_train_step, config, graphdef, tokenize)
        return steps.run(config, workdir, update, state, save)


def check_settings(config) -> None:
    """Raises ValueError for a setting out of range that no step or only a late one would refuse."""
    steps.check_steps(config)
    check_counts(config, ("keep_tokens", "whole_images_every"))
    num_patches = (digit_scenes.CANVAS // max(config.model.vision.patch_size, 1)) ** 2
    if config.keep_tokens > num_patches:
        raise ValueError(
            f"--config.keep_tokens={config.keep_tokens} is more than the {num_patches} patches"
        )


def contrastive_loss(logits, token_ids):
    """Cross-entropy both ways of logits `[B, B]`; equal captions share the probability."""
    same = jnp.all(token_ids[:, None] == token_ids[None], axis=-1)
    target = same / jnp.sum(same, axis=-1, keepdims=True)
    image_to_text = optax.losses.softmax_cross_entropy(logits, target)
    text_to_image = optax.losses.softmax_cross_entropy(logits.T, target)
    return 0.5 * jnp.mean(image_to_text + text_to_image)


def _model_and_optimizer(config):
    model = models.create(config.name, rngs=nnx.Rngs(config.seed), **config.model.to_dict())
    return model, nnx.Optimizer(model, steps.adamw(config), wrt=nnx.Param)


def _train_step(config, graphdef, tokenize, state, step):
    scenes = digit_scenes.make_scenes(
        "train",
        config.batch_size,
        seed=(config.seed, step),
        num_digits=_NUM_DIGITS[step % len(_NUM_DIGITS)],
    )
    whole = step >= config.whole_images_from and step % config.whole_images_every == 0
    keep = None if whole else config.keep_tokens
    batch = put(own_slots((scenes.images, tokenize(scenes.captions))), P(AXIS))
    return _update(graphdef, state, *batch, keep=keep, size=config.batch_size)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("keep", "size"))
def _update(graphdef, state, images, token_ids, *, keep, size):
    """The state after one step, and its loss; `size` pairs count, what follows is padding."""
    model, optimizer = nnx.merge(graphdef, state)

    def loss_of(model: CLIP):
        image = model.vision_projection(_pooled(model.vision, normalise(images), keep))
        text = model.encode_text(token_ids)
        scale = jnp.minimum(jnp.exp(model.logit_scale[...]), _MAX_LOGIT_SCALE)
        logits = scale * similarity(image[:size], text[:size])
        return contrastive_loss(logits, token_ids[:size])

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return nnx.state((model, optimizer)), loss


def _pooled(vision, pixels, keep):
    """The pooled state `[B, C]`, from the class token and `keep` patches of most contrast.

    Ink is where contrast is, so most of the compute is saved at little loss. None keeps all.
    """
    tokens = vision.embed(pixels)
    if keep is not None:
        contrast = patch_contrast(pixels, vision.patch_embedding.patch_size)
        kept = jax.lax.top_k(contrast, keep)[1] + 1
        kept = jnp.pad(kept, ((0, 0), (1, 0)))  # the class token first
        tokens = jnp.take_along_axis(tokens, kept[..., None], axis=1)
    tokens, _, _ = vision.encoder(tokens, [attend_exactly] * len(vision.encoder.blocks))
    return vision.post_norm(tokens[:, 0])


def patch_contrast(pixels, patch_size):
    """Variance of each patch `[B, h·w]` of pixels `[B, height, width, 3]`."""
    batch, height, width, channels = pixels.shape
    grid = (batch, height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return jnp.var(pixels.reshape(grid), axis=(2, 4, 5)).reshape(batch, -1)
