"""What the vision transformers share: the tower around the blocks, and its output.

Shape letters: B batch, N tokens, L approximated blocks, C width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from fna_jax import FNAConfig, Masking, class_token_proxy
from fna_jax.clusters import Clusters
from fna_jax.config import config_by_block
from fna_jax.landmarks import Landmarks

from .attends import MaskedAttention, attend_exactly, observing, vision_attends
from .blocks import Encoder
from .captures import Capture, Captured
from .configs import check_classifier
from .embeddings import PatchEmbedding
from .interventions import Interventions
from .reductions import Remaining, TokenDropping, TokenMerging


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionOutput:
    """What a vision backbone returns.

    Attributes:
      tokens: `[B, N, C]`, Hugging Face's `last_hidden_state`.
      pooled: `[B, C]`.
      landmarks: those of the last approximated block, `Clusters` if it runs centroid attention; or
        the `Clusters` of tokens that were merged or kept; None without any.
      attention_error: float32 `[L, B]`; None unless asked for.
      masked: bool `[B, N]`, the token set T of the interventions; None without any.
      captured: what was asked for; None for nothing.
    """

    tokens: jax.Array
    pooled: jax.Array
    landmarks: Landmarks | Clusters | None = None
    attention_error: jax.Array | None = None
    masked: jax.Array | None = None
    captured: Captured | None = None


class VisionTower(nnx.Module):
    """Images to tokens. A family's tower is this with its own `embed` and `finish`.

    Attributes:
      fna: the approximate attention of some blocks; none for exact attention in all. Not saved.
      interventions: on the attention of some blocks. Not saved.
      reduction: what takes tokens away in some blocks; None for nothing. Not saved.
      num_prefix: tokens in front of the patches: class token, then registers.
      patch_embedding_class: of this family.
    """

    patch_embedding_class = PatchEmbedding

    def __init__(self, config, *, num_prefix, patch_bias=True, dtype, param_dtype, rngs):
        """Of a config with `patch_size` and `encoder`: the patch embedding and the blocks."""
        self.fna: tuple[FNAConfig, ...] = ()
        self.interventions = Interventions()
        self.reduction: TokenMerging | TokenDropping | None = None
        self.num_prefix = num_prefix
        self.patch_embedding = self.patch_embedding_class(
            config.encoder.width,
            config.patch_size,
            use_bias=patch_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.encoder = Encoder(config.encoder, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def embed(self, images):
        """Tokens `[B, N, C]` before the first block, those in front of the patches first."""
        raise NotImplementedError

    def finish(self, tokens):
        """The tower's tokens `[B, N, C]` and pooled state `[B, C]`, of the last block's tokens."""
        raise NotImplementedError

    def headless(self, tokens):
        """`finish` of a tower that ends with its blocks: the tokens, and the patches' mean."""
        patches = tokens[:, self.num_prefix :].astype(jnp.float32)
        return tokens, jnp.mean(patches, axis=1).astype(tokens.dtype)

    def position_attends(self, attends, images):
        """The blocks' attentions with what positions do to them: nothing, unless rotary."""
        del images
        return attends

    def __call__(
        self, images, *, rng=None, compare=False, tokens=None, capture: Capture | None = None
    ) -> VisionOutput:
        """Tokens `[B, N, C]` and their pooled state `[B, C]`.

        Where tokens were dropped, they are NaN.

        Args:
          images: floats `[B, height, width, 3]`, preprocessed; any size that divides by the patch.
          rng: key of random landmarks, if the attention draws them.
          compare: run exactly, and report each FNA block's error on the exact inputs.
          tokens: bool `[B, N]`, the token set of interventions that have no detector.
          capture: what to keep for a look.

        Raises:
          ValueError: an image size that does not divide, blocks to capture that do not exist or
            run FNA, or an argument that is missing or that nothing would use.
        """
        images = jnp.asarray(images)
        detector = self.interventions.detector
        self._check_call(tokens, capture)
        approximated = config_by_block(self.fna)
        x, landmarks, records, start = self.embed(images), (None,) * len(self.fna), [], 0
        grid = tuple(pixels // self.patch_embedding.patch_size for pixels in images.shape[-3:-1])
        if self.reduction is not None:
            landmarks = (Remaining.all_of(x, grid, self.num_prefix),)

        def attends(tokens):
            options = dict(grid=grid, rng=rng, compare=compare, tokens=tokens, capture=capture)
            return self.position_attends(vision_attends(self, **options), images)

        if detector is not None:
            embedded, start = x, min(detector.first_block, self.interventions.by_block[0][0])
            x, landmarks, records = self.encoder(
                embedded, attends(None)[:start], landmarks=landmarks
            )
            if min(approximated, default=start) >= start:
                tokens = detector(self, x, images, start)
            else:  # detectors see exact attention, also below FNA
                tokens = detector(self, embedded, images, 0)
        x, landmarks, rest = self.encoder(
            x, attends(tokens)[start:], start=start, landmarks=landmarks
        )
        records += rest
        return VisionOutput(
            *self._finished(x, landmarks),
            self.last_landmarks(landmarks),
            jnp.stack([records[i].error for i in sorted(approximated)]) if compare else None,
            tokens,
            capture and self._captured(capture, records, x, grid),
        )

    def _captured(self, capture, records, x, grid):
        """What was captured, of the blocks' records and the tokens after the last."""

        def as_features(tokens, finished):
            tokens = self.finish(tokens)[0] if finished else tokens
            return tokens[:, self.num_prefix :].reshape(len(tokens), *grid, -1)

        return Captured.of(capture, [record.kept for record in records], x, as_features)

    def _finished(self, x, landmarks):
        """`finish` of the last block's tokens x, whether or not some were taken away."""
        if self.reduction is None:
            return self.finish(x)
        return self.reduction.finish(self.finish, x, *landmarks)

    def last_landmarks(self, landmarks):
        """Of those that the blocks hand on, what the output tells."""
        if self.reduction is not None:
            return landmarks[0].clusters
        approximated = config_by_block(self.fna)
        return landmarks[self.fna.index(approximated[max(approximated)])] if approximated else None

    def _check_call(self, tokens, capture):
        """Raises ValueError for a token set that is missing or not wanted, or a bad capture."""
        if self.interventions.detector is not None and tokens is not None:
            raise ValueError("tokens were given, but this view's detector finds them: drop them")
        if self.interventions.detector is None:
            if self.interventions.need_tokens and tokens is None:
                raise ValueError(
                    "this view masks tokens: call it with tokens=bool[B, N], or give "
                    "models.with_interventions a detector"
                )
            if tokens is not None and not self.interventions.need_tokens:
                raise ValueError("tokens were given, but no intervention speaks of any: drop them")
        if capture is not None:
            if self.reduction is not None:
                raise ValueError(
                    "a capture is of all tokens, and this view takes some away: capture from the "
                    "whole model (models.with_fewer_tokens(model, None))"
                )
            capture.check(len(self.encoder.blocks), self.fna)

    def advance(self, x, images, start, stop):
        """x `[B, N, C]` in front of block `stop`, from in front of `start`, with exact attention.

        Args:
          x: `[B, N, C]`.
          images: those of x, whose size decides about positions.
          start, stop: blocks; none run where they are equal.
        """
        attends = self.position_attends([attend_exactly] * (stop - start), images)
        return self.encoder(x, attends, start=start)[0]

    def probe(self, x, images, start, block, unread=None):
        """The class-token proxy in a block, float32 `[B, N]`, with exact attention up to there.

        Args:
          x, images, start: as in `advance`.
          block: the last to run.
          unread: bool `[B, N]`, tokens that no query may read, in all of these blocks.
        """
        attend = attend_exactly if unread is None else MaskedAttention(Masking(mode="mask"), unread)

        def proxy(query, key):
            return class_token_proxy(
                query,
                key,
                has_class_token=self.num_prefix > 0,
                key_mask=None if unread is None else ~unread,
            )

        last = observing(attend, lambda x, query, key, value: (query, key), lambda qk: proxy(*qk))
        attends = self.position_attends([*[attend] * (block - start), last], images)
        return self.encoder(x, attends, start=start)[2][-1].kept

    def hidden_states(self, images):
        """Tokens `[B, N, C]` after the embedding and after each block, with exact attention."""
        images = jnp.asarray(images)
        attends = self.position_attends([attend_exactly] * len(self.encoder.blocks), images)
        return self.encoder.hidden_states(self.embed(images), attends)


class ClassifiesPooled:
    """A tower with a linear `head` on the pooled state, where its config has `num_classes`."""

    def classify(self, images, *, rng=None, tokens=None):
        """Logits `[B, classes]`. Arguments and errors as in `__call__`.

        Raises:
          ValueError: a model without a classifier.
        """
        check_classifier(self.config)
        return self.head(self(images, rng=rng, tokens=tokens).pooled)
