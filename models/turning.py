"""Attention after queries and keys are turned by rotary positions.

Shape letters: B batch, N tokens, P of them in front of the patches, n tokens that are left,
D head dimension.
"""

from .reductions import remaining_of
from .rotary import rotate


def turned(attend, of_all, of_places, *, num_prefix, rotate=rotate):
    """A block's attention after the patches' query and key are turned.

    Args:
      attend: as in `models.attends`.
      of_all: angles float32 `[N − P, D/2]` of the patches.
      of_places: gives those of merged ones, `[B, n − P, D/2]`, at their mean places in the image
        `[B, n − P, 2]`, as `rotary.patch_coordinates` has them.
      num_prefix: P.
      rotate: what the angles do to query or key; its arguments are those of `rotary.rotate`, and
        so are the shapes above.
    """

    def turn_and_attend(x, query, key, value, landmarks):
        left = remaining_of(landmarks)
        fewer = left is not None and not left.is_all
        angles = of_places(left.places[:, num_prefix:]) if fewer else of_all
        turn = lambda states: rotate(states, angles, num_prefix=num_prefix)
        return attend(x, turn(query), turn(key), value, landmarks)

    return turn_and_attend
