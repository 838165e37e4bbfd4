"""Another attention in somebody's linen model that has no field for it."""

from flax import linen


def swap_attention(attention_fn):
    """A context in which every linen multi-head attention runs `attention_fn`.

    Enter it inside the jitted function, around `model.apply`: what is traced there is swapped, and
    nothing outside changes::

        @jax.jit
        def fast(variables, x):
            with models.swap_attention(FastNystromAttention(64)):
                return model.apply(variables, x)

    Args:
      attention_fn: what Flax calls with query, key and value `[*B, N, H, D]`.
    """

    def interceptor(next_method, args, kwargs, context):
        is_attention = isinstance(context.module, linen.MultiHeadDotProductAttention)
        if is_attention and context.method_name == "__call__":
            # Linen modules are frozen, but this one lives for one apply only.
            object.__setattr__(context.module, "attention_fn", attention_fn)
        return next_method(*args, **kwargs)

    return linen.intercept_methods(interceptor)
