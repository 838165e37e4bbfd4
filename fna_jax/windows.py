"""Windows of a grid of patches, and what is near to each.

Shape letters: B batch, N tokens, P prefix tokens, h and w patches down and across, W windows of
the grid, L = l · l' patches of the largest window, n windows near to one.
"""

import dataclasses
import math
import operator

import jax.numpy as jnp
import numpy as np

from fna_jax.clusters import Clusters


@dataclasses.dataclass(frozen=True)
class Windows:
    """The patch grid cut into rectangles as even as they go, the larger ones first.

    Every prefix token is a window of its own, in front of the others and near to all.

    Attributes:
      grid: patches down and across, (h, w).
      cut: windows down and across.
      near: which windows are near to one of the grid: 0, itself; 1, the 3 × 3 around it.
      num_prefix: P, tokens in front of the patches.

    Raises:
      ValueError: a field outside its range, or more windows than patches along an axis.
    """

    grid: tuple[int, int]
    cut: tuple[int, int]
    near: int = 0
    num_prefix: int = 0

    def __post_init__(self):
        for name in ("grid", "cut"):
            try:
                pair = tuple(operator.index(size) for size in getattr(self, name))
            except TypeError:
                pair = ()
            if len(pair) != 2 or min(pair) < 1:
                raise ValueError(
                    f"{name} must be two numbers of at least 1, down and across, "
                    f"got {getattr(self, name)!r}"
                )
            object.__setattr__(self, name, pair)
        if self.cut[0] > self.grid[0] or self.cut[1] > self.grid[1]:
            raise ValueError(f"a grid of {self.grid} patches cannot be cut into {self.cut} windows")
        if self.near not in (0, 1):
            raise ValueError(f"near must be 0 (the own window) or 1 (3 × 3), got {self.near!r}")
        if self.num_prefix < 0:
            raise ValueError(f"num_prefix must be at least 0, got {self.num_prefix}")

    @classmethod
    def at_most(cls, count, grid, near=0, num_prefix=0) -> "Windows":
        """At most `count` windows of a grid (h, w), as square as they go, then as many.

        Of a square grid 144 are 12 × 12, of one twice as wide 8 × 18.
        """
        height, width = grid
        cuts = [(rows, min(width, count // rows)) for rows in range(1, min(height, count) + 1)]
        longest = lambda cut: max(height / cut[0], width / cut[1])
        return cls(
            grid, min(cuts, key=lambda cut: (longest(cut), -math.prod(cut))), near, num_prefix
        )

    @property
    def num_tokens(self) -> int:
        """N, the prefix included."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def num_windows(self) -> int:
        """Those of the prefix included, P + W."""
        return self.num_prefix + self.cut[0] * self.cut[1]

    def clusters(self, batch=()) -> Clusters:
        """The windows as clusters of tokens, for images of this batch shape."""
        down, across = (
            np.repeat(
                np.arange(parts), [len(part) for part in np.array_split(np.arange(size), parts)]
            )
            for size, parts in zip(self.grid, self.cut)
        )
        patches = self.num_prefix + down[:, None] * self.cut[1] + across
        assignment = np.concatenate([np.arange(self.num_prefix), patches.ravel()]).astype(np.int32)
        assignment = jnp.broadcast_to(assignment, (*batch, assignment.size))
        return Clusters(assignment, self.num_windows, self.num_prefix)

    def neighbours(self) -> np.ndarray:
        """The windows of the grid near to each, int `[W, 1]` or `[W, 9]`; -1 beyond the edge."""
        numbers = np.arange(self.cut[0] * self.cut[1]).reshape(self.cut)
        padded = np.pad(numbers, self.near, constant_values=-1)
        steps = range(2 * self.near + 1)
        shifted = [
            padded[i:, j:][: self.cut[0], : self.cut[1]].ravel() for i in steps for j in steps
        ]
        return np.stack(shifted, axis=-1)

    def cut_up(self, patches):
        """Patches `[B, h·w, …]` where they are, `[B, rows, l, columns, l', …]`: row l and column l'
        of a window; zeros where one is smaller."""
        grid = patches.reshape(patches.shape[0], *self.grid, *patches.shape[2:])
        return _cut(_cut(grid, 1, self.cut[0]), 3, self.cut[1])

    def put_together(self, windows):
        """The inverse of `cut_up`."""
        grid = _uncut(_uncut(windows, 3, self.grid[1]), 1, self.grid[0])
        return grid.reshape(windows.shape[0], self.grid[0] * self.grid[1], *windows.shape[5:])

    def split(self, patches):
        """Patches `[B, h·w, …]` by windows, `[B, W, L, …]`; zeros where a window is smaller."""
        cut = jnp.swapaxes(self.cut_up(patches), 2, 3)  # [B, rows, columns, l, l', …]
        return cut.reshape(cut.shape[0], self.cut[0] * self.cut[1], -1, *cut.shape[5:])

    def join(self, windows):
        """The inverse of `split`."""
        sizes = [-(-size // parts) for size, parts in zip(self.grid, self.cut)]
        cut = windows.reshape(windows.shape[0], *self.cut, *sizes, *windows.shape[3:])
        return self.put_together(jnp.swapaxes(cut, 2, 3))


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
