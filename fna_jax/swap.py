"""Another attention in a linen model that somebody else wrote."""

import contextlib
import fnmatch
import functools

import jax

# A new value at each entry: what was compiled elsewhere is not used inside, nor the reverse.
_entry = jax.make_user_context()


@contextlib.contextmanager
def swap_attention(attention_fn, *, only=None):
    """A context in which linen's multi-head attentions run `attention_fn`.

    Enter it inside the jitted function, around `model.apply`: what is traced there is swapped, and
    nothing outside changes::

        @jax.jit
        def fast(variables, x):
            with swap_attention(FastNystromAttention(64), only="encoder/block_1[2-9]"):
                return model.apply(variables, x)

    Around a call of a jitted function it does the same, but has that compiled at each entry. What
    `attention_fn` refuses is raised with the path of the module in front.

    Args:
      attention_fn: what Flax calls with query, key and value `[*B, N, H, D]`.
      only: which modules: text, or a sequence of texts, that match the path of the module or of one
        that it lies in, parts joined by "/", `*`, `?` and `[…]` as in file names; or a function of
        the path, a tuple of its parts, and the module. Layers in `nn.scan` are one module. By
        default all.

    Raises:
      ValueError: on leaving, if nothing was swapped: the model's attention is not linen's
        `MultiHeadDotProductAttention`, `only` matches none, or all was compiled before.
      TypeError: `only` is none of these.
    """
    from flax import linen  # `fna_jax` without it works

    chosen = _chooser(only)
    swapped, left, others = {}, {}, {}  # as ordered sets: paths, paths, classes

    def interceptor(next_method, args, kwargs, context):
        module = context.module
        if not isinstance(module, linen.MultiHeadDotProductAttention):
            others[type(module).__name__] = None
            return next_method(*args, **kwargs)
        if context.method_name != "__call__":
            return next_method(*args, **kwargs)
        path = "/".join(module.path)
        if not chosen(module.path, module):
            left[path] = None
            return next_method(*args, **kwargs)
        swapped[path] = None
        own = module.attention_fn
        # Linen modules are frozen. One that is bound lives on, and gets its own function back.
        object.__setattr__(module, "attention_fn", _named(attention_fn, path))
        try:
            return next_method(*args, **kwargs)
        finally:
            object.__setattr__(module, "attention_fn", own)

    with _entry(object()), linen.intercept_methods(interceptor):
        yield
    if not swapped:
        raise ValueError(f"swap_attention swapped nothing: {_reason(left, others)}")


def _chooser(only):
    """`only` as a function of a module's path and the module."""
    if only is None:
        return lambda path, module: True
    if callable(only):
        return only
    patterns = (only,) if isinstance(only, str) else only
    if not isinstance(patterns, (tuple, list)) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(
            f"only must be text, a sequence of texts or a function of (path, module), got {only!r}"
        )

    def matches(path, module):
        heads = ["/".join(path[: length + 1]) for length in range(len(path))]
        return any(fnmatch.fnmatchcase(head, pattern) for head in heads for pattern in patterns)

    return matches


def _named(attention_fn, path):
    """`attention_fn`, with the signature that Flax reads, whose ValueErrors name the module."""

    @functools.wraps(attention_fn, updated=())
    def attend(*args, **kwargs):
        try:
            return attention_fn(*args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{path or 'the model'}: {error}") from error

    return attend


def _reason(left, others):
    """Why nothing was swapped, and what to do."""
    if left:
        return f"only= matches none of the attentions {', '.join(left)}"
    if not others:
        return (
            "no linen module ran inside. Is the function compiled ahead of time, or the model nnx "
            "(there, nnx.with_attributes does it)?"
        )
    own = [name for name in others if "attention" in name.lower() or "attn" in name.lower()]
    named = f" ({', '.join(own)})" if own else ""
    return (
        f"the model has an attention of its own{named}, not linen's MultiHeadDotProductAttention; "
        "call FastNystromAttention there, on query, key and value"
    )
