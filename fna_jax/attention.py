"""What people import: attention functions, and the `attention_fn` of Flax's attention modules.

Shape letters: B batch, N tokens, H heads, K key and value heads (a divisor of H), D head dimension.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from fna_jax.config import FNAConfig
from fna_jax.flax_calls import dropout_is_active, exact_call, matmul_precision, read_mask
from fna_jax.landmarks import select_in_layer
from fna_jax.layers import attend_in_layer, partition_in_layer
from fna_jax.nystrom import (
    check_implementation,
    exact_attention,
    fast_nystrom_attention,
    landmark_key_value,
    newton_schulz_inverse,
)
from fna_jax.windows import checked_sizes

__all__ = [
    "FastNystromAttention",
    "exact_attention",
    "fast_nystrom_attention",
    "landmark_key_value",
    "newton_schulz_inverse",
]


@dataclasses.dataclass(frozen=True)
class FastNystromAttention:
    """The `attention_fn` of Flax's attention modules: FNA, or centroid attention, of one layer.

    A frozen dataclass, so that equal settings compile once. A mask of padding is honoured, boolean
    or of zeros and ones, `[*B, 1, 1, N]` or, as `make_attention_mask` gives it, `[*B, 1, N, N]`.
    What FNA cannot honour raises: other masks, a bias, causal attention, cross-attention, fewer
    tokens than landmarks, active dropout, sowing of the weights, keywords it does not know.

    Attributes:
      num_landmarks: S.
      features: what landmarks are chosen on: "q", "k" or "v", averaged over heads. (The block's
        input is not visible here; the models in `models/` also offer "input".)
      method: "fps" or "random".
      guarantee: positions that are always landmarks; by default token 0, the class token. Registers
        belong here too. For a model without a class token (SigLIP, and others that pool) pass (),
        or the first patch is a landmark always.
      seed: seeds the landmarks of method "random".
      inverse_steps, scale, implementation: as in `fast_nystrom_attention`. The last two may come
        with the call instead.
      mask_is_padding: that masks `[*B, 1, N, N]` are of padding. Under `jit` their values are not
        known, so that they raise unless this says so. Where one is causal the result is wrong.
      otherwise: "raise", or "exact" for exact attention where there are other numbers of queries
        and keys, fewer tokens than landmarks or others than `grid` has, a bias, or a mask that is
        known not to be of padding.
      approximation, partition, windows, near, residual: as in `FNAConfig`; clusters are chosen in
        every layer, and the tokens of `guarantee`, the first ones, are alone in theirs.
      grid: how many patches, which follow these tokens, there are down and across; of a video in
        time, down and across. Windows and k-means need it.

    Raises:
      ValueError: a field outside its range, or one that nothing would use; the message names it.
    """

    num_landmarks: int
    features: str = "q"
    method: str = "fps"
    guarantee: tuple[int, ...] = (0,)
    seed: int = 0
    inverse_steps: int = 6
    scale: float | None = None
    implementation: str | None = None
    mask_is_padding: bool = False
    otherwise: str = "raise"
    approximation: str = "nystrom"
    partition: str = "landmarks"
    windows: int | None = None
    near: int = 0
    residual: bool = True
    grid: tuple[int, ...] | None = None

    def __post_init__(self):
        for name, choices in (
            ("features", ("q", "k", "v")),
            ("mask_is_padding", (False, True)),
            ("otherwise", ("raise", "exact")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(repr, choices))} here, "
                    f"got {getattr(self, name)!r}"
                )
        object.__setattr__(self, "guarantee", tuple(self.guarantee))  # hashable, also from a list
        self._check_grid(self._settings())

    def _settings(self) -> FNAConfig:
        """The same as settings of one block, which checks them."""
        names = {field.name for field in dataclasses.fields(FNAConfig)}
        mine = {name: value for name, value in vars(self).items() if name in names}
        return FNAConfig((0,), guarantee_prefix=len(self.guarantee) > 0, **mine)

    def _check_grid(self, settings):
        """Raises ValueError for a grid that is missing or not wanted, or a prefix with gaps."""
        centroid = settings.approximation == "centroid"
        needed = centroid and (settings.windows is not None or settings.partition != "landmarks")
        if needed and self.grid is None:
            raise ValueError(
                f"windows={self.windows}, partition={self.partition!r} need the patches down and "
                "across: pass grid=(h, w), of a video (t, h, w)"
            )
        if self.grid is not None:
            if not needed:
                raise ValueError(f"grid={self.grid} needs windows, or partition='kmeans'")
            object.__setattr__(self, "grid", checked_sizes("grid", self.grid))
        if centroid and self.guarantee != tuple(range(len(self.guarantee))):
            raise ValueError(
                "for centroid attention guarantee must name the first tokens, as in (0,) or "
                f"(0, 1), got {self.guarantee}"
            )

    def __call__(
        self,
        query,
        key,
        value,
        bias=None,
        mask=None,
        *,
        broadcast_dropout=True,
        dropout_rng=None,
        dropout_rate=0.0,
        deterministic=False,
        dtype=None,
        precision=None,
        module=None,
        scale=None,
        implementation=None,
        is_causal=False,
        causal=False,
        input_positions=None,
        force_fp32_for_softmax=False,
        qk_attn_weights_einsum=None,
        attn_weights_value_einsum=None,
        **unknown,
    ):
        """FNA of `query` `[*B, N, H, D]`, `key`, `value` `[*B, N, K, D]`; keywords are Flax's.

        And `scale` and `implementation`, which `jax.nn.dot_product_attention` has, and `causal`,
        which jimm says for `is_causal`.
        """
        # Honoured by construction: without dropout its key and shape mean nothing, and the softmax
        # is float32 with or without force_fp32_for_softmax.
        del dropout_rng, broadcast_dropout, force_fp32_for_softmax
        _refuse(
            {
                "dropout_rate (set deterministic=True)": dropout_is_active(
                    dropout_rate, deterministic
                ),
                "module (sow_weights: FNA forms no attention matrix)": module is not None,
                "input_positions": input_positions is not None,
                "qk_attn_weights_einsum": qk_attn_weights_einsum is not None,
                "attn_weights_value_einsum": attn_weights_value_einsum is not None,
                "scale (FastNystromAttention.scale is set too: drop one)": (
                    scale is not None and self.scale is not None
                ),
                **{name: argument is not None for name, argument in unknown.items()},
            }
        )
        scale = self.scale if scale is None else scale
        implementation = check_implementation(implementation or self.implementation)
        is_causal = is_causal or causal
        dtype = dtype or jnp.result_type(query, key, value)
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        key_mask, obstacle = self._read(query, key, bias, mask, is_causal)
        with matmul_precision(precision):
            if obstacle is not None:
                options = dict(bias=bias, mask=mask, is_causal=is_causal, scale=scale)
                return exact_call(query, key, value, **options)
            states = {"q": query, "k": key, "v": value}
            return self._approximate(states, key_mask, scale, implementation)

    def _approximate(self, states, key_mask, scale, implementation):
        """FNA or centroid attention of query, key and value, `[*B, N, H, D]`."""
        rng = jax.random.key(self.seed) if self.method == "random" else None
        chosen = dict(key_mask=key_mask, rng=rng)
        if self.approximation == "centroid":
            of_layer = dict(grid=self.grid, num_prefix=len(self.guarantee))
            settings = self._settings()
            clusters = partition_in_layer(states, settings, None, **of_layer, **chosen)
            options = dict(key_mask=key_mask, scale=scale)
            return attend_in_layer(*states.values(), clusters, settings, **of_layer, **options)
        landmarks = select_in_layer(
            states,
            self.features,
            self.num_landmarks,
            method=self.method,
            guarantee=self.guarantee,
            **chosen,
        )
        return fast_nystrom_attention(
            *states.values(),
            landmarks,
            scale=scale,
            key_mask=key_mask,
            inverse_steps=self.inverse_steps,
            implementation=implementation,
        )

    def _read(self, query, key, bias, mask, is_causal):
        """The key mask bool `[*B, N]` or None, and why FNA cannot run here or None.

        Raises:
          ValueError: it cannot, and `otherwise` is "raise"; or a mask that is none.
        """
        key_mask, obstacle = None, self._obstacle(query, key, bias, is_causal)
        if obstacle is None:
            key_mask, obstacle = read_mask(mask, query, is_padding=self.mask_is_padding)
        if obstacle is not None and self.otherwise == "raise":
            raise ValueError(
                f"{obstacle}; keep exact attention in this layer, with only= or otherwise='exact'"
            )
        return key_mask, obstacle

    def _obstacle(self, query, key, bias, is_causal):
        """Why FNA cannot run here, whatever the mask, or None."""
        num_queries, num_keys = query.shape[-3], key.shape[-3]
        if num_queries != num_keys:
            return (
                f"FNA is self-attention, but there are {num_queries} queries and {num_keys} keys "
                "(a pooling head?)"
            )
        if num_keys < self.num_landmarks:
            return f"there are {num_keys} tokens, fewer than the {self.num_landmarks} landmarks"
        if self.grid is not None and num_keys != len(self.guarantee) + math.prod(self.grid):
            return (
                f"there are {num_keys} tokens, but {len(self.guarantee)} in front of a grid of "
                f"{self.grid} are {len(self.guarantee) + math.prod(self.grid)}"
            )
        if bias is not None:
            return "FastNystromAttention cannot honour bias"
        return "FastNystromAttention cannot honour is_causal" if is_causal else None


def _refuse(given):
    """Raises ValueError for arguments, by their names, that are given and cannot be honoured."""
    if refused := [name for name, is_given in given.items() if is_given]:
        raise ValueError(
            f"FastNystromAttention cannot honour {', '.join(refused)}; "
            "keep exact attention in this layer"
        )
