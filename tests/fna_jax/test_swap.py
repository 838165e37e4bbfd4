"""Swapping attention into models that somebody else wrote, and choosing modules, in both APIs."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from fna_jax import FastNystromAttention, swap_attention
from tests.conftest import few, rel_max_error

WIDTH, HEADS, TOKENS, DEPTH = 8, 2, 12, 4
FNA = FastNystromAttention(5, inverse_steps=1)
INPUTS = np.random.default_rng(0).standard_normal((2, TOKENS, WIDTH)).astype(np.float32)


def mean(query, key, value):
    """Attention without any attention, which compiles fast."""
    return jnp.broadcast_to(value.mean(axis=-3, keepdims=True), query.shape)


class Block(linen.Module):
    """Pre-norm attention, with the keywords that such models pass."""

    attention_fn: object = linen.dot_product_attention

    @linen.compact
    def __call__(self, x, mask=None):
        attention = linen.MultiHeadDotProductAttention(
            HEADS, dropout_rate=0.1, attention_fn=self.attention_fn, name="attn"
        )
        return x + attention(linen.LayerNorm()(x), mask=mask, deterministic=True)


class ScannedBlock(Block):
    """As `linen.scan` wants it: a carry in, a carry and an output out."""

    @linen.compact
    def __call__(self, x, mask=None):
        return super().__call__(x, mask), None


class Encoder(linen.Module):
    """Blocks in one of the ways in which models have them, and attention pooling, by one query."""

    style: str = "plain"
    attention_fn: object = linen.dot_product_attention  # of the blocks; nobody's model has this
    pooling: bool = False
    depth: int = DEPTH

    @linen.compact
    def __call__(self, x, mask=None):
        wrap = {"plain": lambda c: c, "remat": linen.remat, "jit": linen.jit}
        if self.style == "scan":
            lengths = dict(length=self.depth, variable_axes={"params": 0}, in_axes=linen.broadcast)
            scan = linen.scan(ScannedBlock, split_rngs={"params": True}, **lengths)
            x, _ = scan(self.attention_fn, name="blocks")(x, mask)
        else:
            block = wrap[self.style](Block)
            for index in range(self.depth):
                x = block(self.attention_fn, name=f"block_{index}")(x, mask)
        if self.pooling:
            probe = self.param("probe", linen.initializers.normal(), (1, 1, WIDTH))
            probe = jnp.broadcast_to(probe, (x.shape[0], 1, WIDTH))
            x = linen.MultiHeadDotProductAttention(HEADS, name="pooling")(probe, x)
        return x


class OwnAttention(linen.Module):
    """What `swap_attention` does not know."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(WIDTH)(x)


@pytest.fixture(scope="module")
def variables():
    """Of the plain encoder with pooling; blocks alike, so that all styles can have them."""
    return random_variables(Encoder(pooling=True))


def random_variables(model):
    """As it begins, but with normal kernels from NumPy, which compiles nothing."""
    rng = np.random.default_rng(0)

    def begin(path, leaf):
        if (name := path[-1].key) in ("bias", "scale"):
            return np.full(leaf.shape, name == "scale", leaf.dtype)
        return (0.3 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), INPUTS)
    return jax.tree_util.tree_map_with_path(begin, shapes)


def apply_fast(model, variables, *arguments, **settings):
    """The model with FNA swapped in, compiled; one function for each call, so that it traces."""

    @jax.jit
    def fast(variables, *arguments):
        with swap_attention(settings.pop("attention", mean), **settings):
            return model.apply(variables, *arguments)

    return fast(variables, *arguments)


@pytest.mark.parametrize("style", few(["plain", "remat", "jit", "scan"], 2))
def test_swapped_is_built_with_it(variables, style):
    model = Encoder(style, depth=2)
    if style == "scan":
        variables = random_variables(model)
    exact = jax.jit(model.apply)(variables, INPUTS)
    expected = jax.jit(Encoder(style, mean, depth=2).apply)(variables, INPUTS)
    np.testing.assert_array_equal(apply_fast(model, variables, INPUTS), expected)
    assert rel_max_error(exact, expected) > 1e-3
    np.testing.assert_array_equal(jax.jit(lambda *a: model.apply(*a))(variables, INPUTS), exact)


def test_a_compiled_function_is_compiled_again_inside_and_itself_again_outside(variables):
    apply = jax.jit(Encoder(depth=2).apply)
    exact = apply(variables, INPUTS)
    for _ in range(2):
        with swap_attention(mean):
            fast = apply(variables, INPUTS)
        assert rel_max_error(fast, exact) > 1e-3
        np.testing.assert_array_equal(apply(variables, INPUTS), exact)


def test_a_bound_module_has_its_own_attention_afterwards(variables):
    bound = Encoder(depth=2).bind(variables)
    exact = bound(INPUTS)
    with swap_attention(mean):
        assert rel_max_error(bound(INPUTS), exact) > 1e-3
    np.testing.assert_array_equal(bound(INPUTS), exact)

    attention = linen.MultiHeadDotProductAttention(HEADS)
    attention = attention.bind({"params": variables["params"]["block_0"]["attn"]})
    with pytest.raises(ValueError, match="the model: there are 2 tokens"), swap_attention(FNA):
        attention(INPUTS[:, :2])
    assert attention.attention_fn is linen.dot_product_attention


def test_what_swaps_nothing_raises(variables):
    own = OwnAttention()
    own_variables = random_variables(own)
    with pytest.raises(ValueError, match=r"swapped nothing.*of its own \(OwnAttention\)"):
        apply_fast(own, own_variables, INPUTS)
    with pytest.raises(ValueError, match=r"only= matches none.* block_0/attn, block_1/attn"):
        apply_fast(Encoder(depth=2), variables, INPUTS, only="layer_0")
    compiled = jax.jit(Encoder(depth=1).apply).lower(variables, INPUTS).compile()
    with pytest.raises(ValueError, match="compiled ahead of time"), swap_attention(FNA):
        compiled(variables, INPUTS)


@pytest.mark.parametrize(
    "only, chosen",
    [
        ("block_3", [3]),
        ("block_[12]/attn", [1, 2]),
        (["block_0", "block_3/*"], [0, 3]),
        (lambda path, module: module.num_heads == HEADS and path[0] in ("block_1", "x"), [1]),
        ("block*", [0, 1, 2, 3]),
    ],
)
def test_only_chooses_modules(variables, only, chosen):
    is_attention = lambda module, name: isinstance(module, linen.MultiHeadDotProductAttention)
    capture = dict(capture_intermediates=is_attention, mutable=["intermediates"])

    @jax.jit
    def outputs(variables, x):
        with swap_attention(lambda query, key, value: 0 * query, only=only):
            return Encoder(pooling=True).apply(variables, x, **capture)[1]["intermediates"]

    seen = flax.traverse_util.flatten_dict(outputs(variables, INPUTS), sep="/")
    silent = {path for path, (output,) in seen.items() if not np.any(output)}
    assert silent == {f"block_{index}/attn/__call__" for index in chosen}
    assert len(seen) == DEPTH + 1


def test_only_of_another_kind_is_refused():
    with (
        pytest.raises(TypeError, match=r"function of \(path, module\), got 3"),
        swap_attention(FNA, only=3),
    ):
        pass


def test_errors_name_the_module(variables):
    with pytest.raises(ValueError, match=r"^pooling: FNA is self-attention.*1 queries and 12 keys"):
        apply_fast(Encoder(pooling=True), variables, INPUTS, attention=FNA)


def test_exact_attention_where_fna_cannot_run(variables):
    """Blocks run FNA; the pooling head, and all where tokens are few, what Flax has."""
    fna = FastNystromAttention(5, inverse_steps=1, otherwise="exact")
    model = Encoder(pooling=True, depth=1)
    expected = jax.jit(Encoder(attention_fn=FNA, pooling=True, depth=1).apply)(variables, INPUTS)
    assert rel_max_error(apply_fast(model, variables, INPUTS, attention=fna), expected) < 5e-6
    few = INPUTS[:, :4]
    exact = jax.jit(model.apply)(variables, few)
    assert rel_max_error(apply_fast(model, variables, few, attention=fna), exact) < 5e-6


class NnxEncoder(nnx.Module):
    def __init__(self, *, rngs):
        make = lambda: nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.blocks = nnx.List([make() for _ in range(DEPTH)])
        self.pooling = make()


@pytest.mark.parametrize(
    "only, chosen",
    [
        (nnx.PathContains("blocks"), [0, 1, 2, 3]),
        (nnx.All(nnx.PathContains("blocks"), nnx.Not(nnx.PathContains(1))), [0, 2, 3]),
        (lambda path, node: path[:1] == ("blocks",) and path[1:2] >= (DEPTH // 2,), [2, 3]),
    ],
)
def test_nnx_chooses_by_path(only, chosen):
    """As docs/models.md shows."""
    model = NnxEncoder(rngs=nnx.Rngs(0))
    fast = nnx.with_attributes(model, only=only, attention_fn=FNA)
    assert [i for i, block in enumerate(fast.blocks) if block.attention_fn is FNA] == chosen
    assert fast.pooling.attention_fn is not FNA
    assert all(block.attention_fn is not FNA for block in model.blocks)
