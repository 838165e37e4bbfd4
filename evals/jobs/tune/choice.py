"""Which candidate in which block: from errors and savings to one choice under a budget."""

import numpy as np


def greedy_path(errors, saved) -> list[tuple[int | None, ...]]:
    """Choices of a candidate, or None for exact attention, for each block, saving more and more.

    From exact attention in all blocks to the most that can be saved in each. Every choice changes
    one block of the one before: the change that costs the least error for what it saves. Within a
    block these are the corners of the convex hull of errors against savings, from below.

    Args:
      errors: `[depth, K]`, that add up over blocks.
      saved: `[K]`, of one block, above zero.
    """
    moves = []
    for block, of_block in enumerate(errors):
        at, error = 0, 0.0
        while (more := np.flatnonzero(saved > at)).size:
            slopes = (of_block[more] - error) / (saved[more] - at)
            # Of equal ones the longest, so that none is repeated.
            best = more[np.lexsort((-saved[more], slopes))[0]]
            moves.append((slopes.min(), block, int(best)))
            at, error = saved[best], of_block[best]
    path = [(None,) * len(errors)]
    for _, block, candidate in sorted(moves, key=lambda move: move[0]):  # stable: in order
        path.append((*path[-1][:block], candidate, *path[-1][block + 1 :]))
    return path


def furthest_within(path, error_of, budget):
    """The last choice found whose error is within the budget, by bisection; the first always is.

    Args:
      path: of `greedy_path`.
      error_of: a function of a choice; were it not to grow along the path, an earlier choice would
        be found, never one beyond the budget.
      budget: most of it.
    """
    within, beyond = 0, len(path)
    while beyond - within > 1:
        middle = (within + beyond) // 2
        if error_of(path[middle]) <= budget:
            within = middle
        else:
            beyond = middle
    return path[within]
