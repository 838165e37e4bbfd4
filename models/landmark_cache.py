"""A cache in which few means stand for all tokens of a prompt, with their mass.

Shape letters: S landmarks, D head dimension.
"""

import dataclasses

import jax.numpy as jnp

from fna_jax import FNAConfig, centroid_key_value
from fna_jax.layers import partition_in_layer

from .cache import Cache, LayerCache


@dataclasses.dataclass(frozen=True)
class LandmarkCache:
    """Some layers keep S mean keys and values in place of a prompt's.

    New tokens attend to `softmax(q K̄ᵀ / √D + log m)` beside the raw keys of tokens written since: a
    mean of m tokens weighs as m of them would. Clusters are of the keys as attention sees them, in
    each layer its own: farthest points and a Lloyd step. Means of keys that were rotated to distant
    positions are short, which is where the error comes from. The prompt itself is read exactly.

    Attributes:
      layers: block indices, as in `FNAConfig`.
      num_landmarks: S. With as many as the prompt has tokens nothing changes.

    Raises:
      ValueError: a field outside its range.
    """

    layers: tuple[int, ...]
    num_landmarks: int

    def __post_init__(self):
        object.__setattr__(self, "layers", self._config().layers)

    def _config(self):
        settings = dict(features="k", approximation="centroid", guarantee_prefix=False)
        return FNAConfig(self.layers, self.num_landmarks, **settings)

    def of_prompt(self, decoder, cache: Cache) -> Cache:
        """The cache with landmarks in place of the prompt that it holds, in these layers.

        Args:
          decoder: whose cache it is.
          cache: of a prompt, without room for more; `with_room` comes afterwards.

        Raises:
          ValueError: layers that the decoder does not have, fewer tokens than landmarks, or a
            sliding window, which would have to end within a mean.
        """
        config = decoder.config
        if config.sliding_window is not None:
            raise ValueError(
                f"a sliding window of {config.sliding_window} tokens would end within a landmark's "
                "tokens: use a model without one"
            )
        if self.layers[-1] >= config.depth:
            raise ValueError(
                f"the decoder has blocks 0 to {config.depth - 1}, got layers {self.layers}"
            )
        layers = [
            self._summary(layer) if i in self.layers else layer
            for i, layer in enumerate(cache.layers)
        ]
        return Cache(tuple(layers), cache.position)

    def _summary(self, layer: LayerCache) -> LayerCache:
        if self.num_landmarks > layer.key.shape[1]:
            raise ValueError(
                f"num_landmarks={self.num_landmarks} is more than the {layer.key.shape[1]} tokens "
                "of the prompt; choose fewer"
            )
        real = layer.log_mass > -jnp.inf
        clusters = partition_in_layer(
            {"k": layer.key}, self._config(), None, grid=None, num_prefix=0, key_mask=real
        )
        # Residuals belong to the queries of a cluster's tokens, and new tokens are in none.
        means = centroid_key_value(layer.key, layer.key, layer.value, clusters, key_mask=real)
        filled = jnp.asarray(self.num_landmarks, jnp.int32)
        return LayerCache(means.key, means.value, means.log_mass, filled)
