"""Windows of a grid of patches, and what is near to each.

Shape letters: B batch, N tokens, P prefix tokens, h and w patches down and across, t tubelets of a
video in time, W windows of the grid, L = l · l' patches of the largest window (l · l' · l'' of a
video), n windows near to one.
"""

import dataclasses
import itertools
import math
import operator

import jax.numpy as jnp
import numpy as np

from fna_jax.clusters import Clusters

_AXES = (2, 3)  # of an image, and of a video


@dataclasses.dataclass(frozen=True)
class Windows:
    """The patch grid cut into rectangles, of a video boxes, as even as they go, larger ones first.

    Of a video the grid has three axes, of which time is the first. Every prefix token is a window
    of its own, in front of the others and near to all.

    Attributes:
      grid: patches down and across, (h, w); of a video (t, h, w).
      cut: windows along each of these axes.
      near: which windows are near to one of the grid: 0, itself; 1, the 3 × 3 around it, or the
        3 × 3 × 3.
      num_prefix: P, tokens in front of the patches.

    Raises:
      ValueError: a field outside its range, or more windows than patches along an axis.
    """

    grid: tuple[int, ...]
    cut: tuple[int, ...]
    near: int = 0
    num_prefix: int = 0

    def __post_init__(self):
        for name in ("grid", "cut"):
            object.__setattr__(self, name, checked_sizes(name, getattr(self, name)))
        if len(self.cut) != len(self.grid) or any(map(operator.gt, self.cut, self.grid)):
            raise ValueError(f"a grid of {self.grid} patches cannot be cut into {self.cut} windows")
        if self.near not in (0, 1):
            raise ValueError(
                f"near must be 0 (the own window) or 1 (3 × 3, or 3 × 3 × 3), got {self.near!r}"
            )
        if self.num_prefix < 0:
            raise ValueError(f"num_prefix must be at least 0, got {self.num_prefix}")

    @classmethod
    def at_most(cls, count, grid, near=0, num_prefix=0) -> "Windows":
        """At most `count` windows of a grid, as square (cubic) as they go, then as many.

        Of a square grid 144 are 12 × 12, of one twice as wide 8 × 18.
        """
        *others, last = grid
        parts = itertools.product(*(range(1, min(size, count) + 1) for size in others))
        cuts = [
            (*cut, min(last, count // math.prod(cut))) for cut in parts if math.prod(cut) <= count
        ]
        longest = lambda cut: max(map(operator.truediv, grid, cut))
        return cls(
            grid, min(cuts, key=lambda cut: (longest(cut), -math.prod(cut))), near, num_prefix
        )

    @property
    def num_tokens(self) -> int:
        """N, the prefix included."""
        return self.num_prefix + math.prod(self.grid)

    @property
    def num_windows(self) -> int:
        """Those of the prefix included, P + W."""
        return self.num_prefix + math.prod(self.cut)

    def clusters(self, batch=()) -> Clusters:
        """The windows as clusters of tokens, for images of this batch shape."""
        patches = np.zeros((), int)
        for size, parts in zip(self.grid, self.cut):
            sizes = [len(part) for part in np.array_split(np.arange(size), parts)]
            patches = patches[..., None] * parts + np.repeat(np.arange(parts), sizes)
        patches = self.num_prefix + patches.ravel()
        assignment = np.concatenate([np.arange(self.num_prefix), patches]).astype(np.int32)
        assignment = jnp.broadcast_to(assignment, (*batch, assignment.size))
        return Clusters(assignment, self.num_windows, self.num_prefix)

    def neighbours(self) -> np.ndarray:
        """The windows of the grid near to each, int `[W, n]`, n one or 3 × 3 (3 × 3 × 3); -1 beyond
        the edge."""
        numbers = np.arange(math.prod(self.cut)).reshape(self.cut)
        padded = np.pad(numbers, self.near, constant_values=-1)
        steps = itertools.product(range(2 * self.near + 1), repeat=numbers.ndim)
        around = lambda step: tuple(slice(i, i + parts) for i, parts in zip(step, self.cut))
        return np.stack([padded[around(step)].ravel() for step in steps], axis=-1)

    def cut_up(self, patches):
        """Patches `[B, h·w, …]` where they are, `[B, rows, l, columns, l', …]`: row l and column l'
        of a window; zeros where one is smaller. Of a video, `[B, t·h·w, …]`, the two axes of time
        come in front of these."""
        cut = patches.reshape(patches.shape[0], *self.grid, *patches.shape[2:])
        for i, parts in enumerate(self.cut):
            cut = _cut(cut, 1 + 2 * i, parts)
        return cut

    def put_together(self, windows):
        """The inverse of `cut_up`."""
        rest = windows.shape[1 + 2 * len(self.grid) :]
        for i, size in reversed([*enumerate(self.grid)]):
            windows = _uncut(windows, 1 + 2 * i, size)
        return windows.reshape(windows.shape[0], math.prod(self.grid), *rest)

    def split(self, patches):
        """Patches `[B, h·w, …]` by windows, `[B, W, L, …]`; zeros where a window is smaller."""
        axes = len(self.grid)
        cut = self.cut_up(patches)
        cut = jnp.moveaxis(cut, self.within, range(1 + axes, 1 + 2 * axes))  # […, l, l', …]
        return cut.reshape(cut.shape[0], math.prod(self.cut), -1, *cut.shape[1 + 2 * axes :])

    def join(self, windows):
        """The inverse of `split`."""
        axes = len(self.grid)
        sizes = [-(-size // parts) for size, parts in zip(self.grid, self.cut)]
        cut = windows.reshape(windows.shape[0], *self.cut, *sizes, *windows.shape[3:])
        return self.put_together(jnp.moveaxis(cut, range(1 + axes, 1 + 2 * axes), self.within))

    @property
    def within(self) -> tuple[int, ...]:
        """The axes of what is `cut_up` that lie within a window."""
        return tuple(range(2, 2 + 2 * len(self.grid), 2))


def checked_sizes(name, sizes) -> tuple[int, ...]:
    """The sizes along the axes of a grid as a tuple; raises ValueError, which calls them `name`."""
    try:
        checked = tuple(operator.index(size) for size in sizes)
    except TypeError:
        checked = ()
    if len(checked) not in _AXES or min(checked) < 1:
        raise ValueError(
            f"{name} must be two numbers of at least 1, down and across, or three with time in "
            f"front, got {sizes!r}"
        )
    return checked


def take_windows(x, indices):
    """Of x `[B, W, …]` the windows `indices` `[V, n]`, `[B, V, n, …]`; zeros where negative."""
    taken = x[:, jnp.maximum(indices, 0)]
    there = (indices >= 0).reshape(1, *indices.shape, *[1] * (x.ndim - 2))
    return jnp.where(there, taken, jnp.zeros_like(taken))


def take_near(x, indices):
    """Of x `[B, W, L, …]` the tokens of the windows `indices` `[V, n]`, `[B, V, n · L, …]`."""
    taken = take_windows(x, indices)
    return taken.reshape(*taken.shape[:2], -1, *taken.shape[4:])


def _cut(x, axis, parts):
    """An axis in so many parts, longer ones first: two axes, zeros at the ends of the shorter."""
    size = x.shape[axis]
    longest = -(-size // parts)
    num_longest = parts - (longest * parts - size)
    shape = lambda count, length: (*x.shape[:axis], count, length, *x.shape[axis + 1 :])
    long, short = jnp.split(x, [num_longest * longest], axis=axis)
    long = long.reshape(shape(num_longest, longest))
    if num_longest == parts:
        return long
    short = short.reshape(shape(parts - num_longest, longest - 1))
    padding = [(0, int(i == axis + 1)) for i in range(short.ndim)]
    return jnp.concatenate([long, jnp.pad(short, padding)], axis=axis)


def _uncut(x, axis, size):
    """The inverse of `_cut`: the axis and the next one are one again, of this size."""
    parts, longest = x.shape[axis : axis + 2]
    num_longest = parts - (longest * parts - size)
    merged = lambda x: x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    long, short = jnp.split(x, [num_longest], axis=axis)
    if num_longest == parts:
        return merged(long)
    without_padding = jnp.split(short, [longest - 1], axis=axis + 1)[0]
    return jnp.concatenate([merged(long), merged(without_padding)], axis=axis)
