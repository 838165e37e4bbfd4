"""Whether a converted model computes what the original does, stage by stage."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx

import models
import models.registry
from convert import llava_inputs, qwen_inputs
from convert.errors import ConversionError
from convert.guesses import NOTHING
from convert.layout import Source
from convert.loading import convert_checkpoint, read_checkpoint
from convert.originals import open_original
from convert.sources import fetch, read_config
from models.configs import image_shape
from models.llava import LLaVA, LLaVAConfig, Prompts
from models.qwen_vision import QwenVision
from models.qwen_vl import QwenPrompts, QwenVL, QwenVLConfig

BOUND = 1e-4  # of the relative maximum error, in float32
_LARGEST_SIDE = 1024  # pixels; of published models 560
_LENGTHS = (7, 40)  # of texts for language models
_FRAMES = (4, 6)  # of videos: positions in time begin with the same, however many there are


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One stage of one input: `max |a − e| / max |e|`, and the cosine of a and e.

    `inputs` is what `name_of` calls them.
    """

    inputs: str
    stage: str
    error: float
    cosine: float


def verify(
    source, *, against=None, revision=None, family=None, given=NOTHING, sizes=None, seed=0
) -> list[Comparison]:
    """Compares every stage, on random images and texts.

    Args:
      source: as in `load_pretrained`.
      against: a directory of `models.save` to compare, instead of converting `source` now.
      revision, family, given: as in `load_pretrained`.
      sizes: of images, (height, width) in pixels; by default two, that of the checkpoint and one
        of another shape. For a language model numbers of tokens.
      seed: of the random inputs.

    Raises:
      ConversionError: a source that cannot be read, or whose original library is not installed.
    """
    if given.adapter is not None:
        raise ConversionError("an adapter is not verified: compare its model without")
    path = fetch(source, revision)
    file, view, layout, _, _ = read_checkpoint(path, family, given)
    values = read_config(file, given.config)
    original = open_original(layout, Source(file, values, view.tensors, given))
    if against is None:
        model, _ = convert_checkpoint(path, dtype="float32", family=family, given=given)
    else:
        model = models.load(against)
        if model.config.dtype != "float32":
            raise ConversionError(
                f"{against} computes in {model.config.dtype}, which is coarser than the bound: "
                "compare a conversion with --dtype float32"
            )
    comparisons = []
    pairs = random_inputs(model.config, sizes, seed)
    for inputs in tqdm.tqdm(pairs, desc="verifying", unit="size", leave=False, disable=None):
        comparisons += _compare(name_of(*inputs), stages(model, *inputs), original(*inputs))
    return comparisons


def random_inputs(config, sizes=None, seed=0) -> list[tuple[np.ndarray | None, np.ndarray]]:
    """Images `[2, height, width, 3]` and token ids `[2, T]` for each of `sizes`, as in `verify`.

    A language model has no images: None. Of a model of videos they are `[2, F, height, width, 3]`.
    """
    rng = np.random.default_rng(seed)
    if not models.registry.has_vision(config):
        sizes = {min(length, config.max_positions) for length in sizes or _LENGTHS}
        return [(None, rng.integers(0, config.vocab_size, (2, n))) for n in sorted(sizes)]
    vision = models.registry.vision_config(config)
    patch = vision.patch_size * getattr(vision, "merge_size", 1)
    of_videos = hasattr(vision, "num_frames")
    if sizes is None:
        # Of DINOv3 the config's size is nominal, and may be any.
        height, width = own = image_shape(vision)
        if max(own) >= _LARGEST_SIDE:
            height, width = own = 2 * patch, 2 * patch
        other = (height // patch + 2) * patch, max(width // patch - 1, 1) * patch
        if of_videos:  # of which transformers knows squares alone
            other = other[:1] * 2
        sizes = (own, other)
    frames = [(count,) if of_videos else () for count in _FRAMES]
    shapes = [(2, *count, *size, 3) for count, size in zip(itertools.cycle(frames), sizes)]
    return [
        (
            rng.standard_normal(shape).astype(np.float32),
            _random_texts(config, shape[-3:-1], rng),
        )
        for shape in shapes
    ]


def name_of(images, token_ids) -> str:
    """What to call an input: by the size of its images (of its videos with the number of frames in
    front), or else the number of its tokens."""
    if images is None:
        return f"{token_ids.shape[1]} tokens"
    return "×".join(map(str, images.shape[1:-1]))


def stages(model, images, token_ids) -> dict[str, np.ndarray]:
    """What the model computes with exact attention, by the names of `originals`."""
    if isinstance(model, LLaVA):
        token_ids = llava_inputs.prompts_of(model.config, images, token_ids)
    if isinstance(model, QwenVL):
        token_ids = qwen_inputs.prompts_of(model.config, images, token_ids)
    graphdef, state = nnx.split(model)
    with jax.default_matmul_precision("highest"):
        found = _stages(graphdef, state, images, token_ids)
    return {name: np.asarray(value, np.float32) for name, value in found.items()}


# One program computes what the stages share only once. nnx.jit would copy the weights.
@functools.partial(jax.jit, static_argnums=0)
def _stages(graphdef, state, images, token_ids):
    model = nnx.merge(graphdef, state)
    if images is None:
        return _language_stages(model, token_ids)
    tower = models.vision_tower(model)
    output = tower(images, capture=models.Capture(outputs=f"0:{len(tower.encoder.blocks)}"))
    found = _numbered("", [tower.embed(images), *output.captured.outputs.values()])
    found |= {"tokens": output.tokens, "pooled": output.pooled}
    if hasattr(model, "encode_image"):
        found["projected"] = model.encode_image(images)
    if getattr(model.config, "num_classes", 0):
        found["logits"] = model.classify(images)
    if isinstance(token_ids, Prompts):
        found |= _stages_of_texts(model, model.embed(token_ids), dict(key_mask=token_ids.key_mask))
    if isinstance(token_ids, QwenPrompts):
        found |= _stages_of_texts(model, *model.embed(token_ids))
    if isinstance(tower, QwenVision):
        (features,) = tower.encode([images])
        found["merged"] = features.merged
        found |= {f"deepstack {i}": x for i, x in enumerate(features.deepstack)}
    if hasattr(model, "text"):
        found |= _numbered("text ", model.text.hidden_states(token_ids))
        found["text projected"] = model.encode_text(token_ids)
    return found


def _language_stages(model, token_ids):
    embeddings, key_mask = model.embed(token_ids), jnp.ones(token_ids.shape, bool)
    found = _numbered("", model.hidden_states(embeddings, key_mask=key_mask))
    hidden, _ = model(embeddings, key_mask=key_mask)
    return found | {"tokens": hidden, "logits": model.logits_of(hidden)}


def _stages_of_texts(model, embeddings, others):
    """Of the language model of a larger one, by the arguments that it is called with."""
    states = model.decoder.hidden_states(embeddings, **others)
    hidden, _ = model.decoder(embeddings, **others)
    return _numbered("text ", states) | {"logits": model.decoder.logits_of(hidden)}


def _numbered(prefix, states):
    names = ["embeddings", *(f"block {i}" for i in range(len(states) - 1))]
    return {f"{prefix}{name}": state for name, state in zip(names, states, strict=True)}


def _random_texts(config, size, rng):
    """Random token ids `[2, T]`, the last of each the end-of-text token if there is one."""
    if isinstance(config, LLaVAConfig):
        return llava_inputs.random_texts(config, rng)
    if isinstance(config, QwenVLConfig):
        return qwen_inputs.random_texts(config, size, rng)
    if not hasattr(config, "text"):
        return np.zeros((2, 1), np.int64)
    text = config.text
    token_ids = rng.integers(0, text.vocab_size, (2, text.context_length))
    end = getattr(text, "eos_token_id", None)
    token_ids[:, -1] = text.vocab_size - 1 if end is None else end
    return token_ids


def _compare(inputs, actual, expected):
    blocks = [name for name in actual if name == "embeddings" or "block" in name]
    ends = [name for name in ("tokens", "pooled", "projected", "logits") if name in expected]
    if missing := [name for name in blocks if name not in expected]:
        raise ConversionError(f"the original gave no {', '.join(missing)} to compare with")
    if not ends:
        raise ConversionError("the original gave no output to compare with")
    for name in [name for name in actual if name in expected]:
        a, e = actual[name], expected[name]
        if a.shape != e.shape:
            raise ConversionError(f"{name} is {a.shape}, but {e.shape} in the original")
        yield Comparison(inputs, name, *_error_and_cosine(a, e))


def _error_and_cosine(actual, expected):
    """Of a `Comparison`, in float64, part by part: the logits of a long text are gigabytes."""
    num_parts = 1 + actual.size // 2**24
    parts = []
    for a, e in zip(*(np.array_split(x.ravel(), num_parts) for x in (actual, expected))):
        a, e = a.astype(np.float64), e.astype(np.float64)
        parts.append([np.max(np.abs(a - e)), np.max(np.abs(e)), a @ e, a @ a, e @ e])
    parts = np.array(parts)
    worst, largest = np.max(parts[:, :2], axis=0)
    dot, *squares = np.sum(parts[:, 2:], axis=0)
    return float(worst / largest), float(dot / np.sqrt(np.prod(squares)))
