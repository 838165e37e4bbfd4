"""What a checkpoint's files leave open: guessed and said so, or given by who knows."""

import dataclasses
import math
import os
import typing

from convert.errors import ConversionError, show
from models.plain_vit import POOLS


@dataclasses.dataclass(frozen=True)
class Given:
    """What a person says of a checkpoint where its files do not; None is guessed, or nothing.

    Attributes:
      weights: the name of the state dict to take, where several fit.
      config: a file to read in place of the config beside the weights.
      adapter: a folder that peft wrote, to be merged into the weights.
      heads: of attention in the vision tower.
      text_heads: of attention in the text tower.
      patch_grid: patches down and across at which positions were learned.
      pool: what is pooled, "token" or "avg".

    Raises:
      ConversionError: a value that no model has.
    """

    weights: str | None = None
    config: str | os.PathLike | None = None
    adapter: str | os.PathLike | None = None
    heads: int | None = None
    text_heads: int | None = None
    patch_grid: tuple[int, int] | None = None
    pool: str | None = None

    def __post_init__(self):
        if not isinstance(self.weights, str | None):
            raise ConversionError(f"weights must be a name, got {show(self.weights)}")
        for name in ("heads", "text_heads"):
            if (value := getattr(self, name)) is not None and not _is_count(value):
                raise ConversionError(f"{name} must be a number from 1 on, got {show(value)}")
        grid = self.patch_grid
        if grid is not None and not (
            isinstance(grid, tuple) and len(grid) == 2 and all(map(_is_count, grid))
        ):
            raise ConversionError(
                f"patch_grid must be patches down and across, as in (14, 14), got {show(grid)}"
            )
        if self.pool not in (None, *POOLS):
            raise ConversionError(f"pool must be one of {', '.join(POOLS)}, got {show(self.pool)}")


NOTHING = Given()

# What the command line calls them, with a stand-in for the value.
OPTIONS = {
    "heads": "--heads N",
    "text_heads": "--text-heads N",
    "patch_grid": "--patch-grid H,W",
    "pool": f"--pool {'|'.join(POOLS)}",
}


class Guess(typing.NamedTuple):
    """One value that no file says; `reason` is None where a person gave it."""

    name: str
    value: typing.Any
    reason: str | None

    def __str__(self):
        value = ",".join(map(str, self.value)) if isinstance(self.value, tuple) else self.value
        named = f"{self.name.replace('_', ' ')} {value}"
        if self.reason is None:
            return named
        return f"{named}: guessed from {self.reason}; {OPTIONS[self.name]} if not"


def refuse_unused(given: Given, guesses, checkpoint):
    """Raises ConversionError for a value given where nothing had to be guessed."""
    for name in OPTIONS:
        value = getattr(given, name)
        if value is not None and name not in {guess.name for guess in guesses}:
            raise ConversionError(
                f"{name} was given as {show(value)}, but nothing leaves it open in a checkpoint of "
                f"{checkpoint}: drop {OPTIONS[name]}"
            )


class Guesses:
    """Settles what the files leave open, and keeps account of it in `made`."""

    def __init__(self, given: Given):
        self.given = given
        self.made: list[Guess] = []

    def settle(self, name, guess, reason):
        """The value given, or else the guess."""
        value = getattr(self.given, name)
        made = Guess(name, guess, reason) if value is None else Guess(name, value, None)
        self.made.append(made)
        return made.value

    def heads_of_64(self, name, width, whose) -> int:
        """The number of heads where `whose` all have 64 channels; errors as for `heads`."""
        guess = 0 if width % 64 else width // 64
        return self.heads(
            name, width, guess, f"the width {width}, 64 channels each as {whose} have"
        )

    def heads(self, name, width, guess, reason) -> int:
        """The number of heads of a tower; raises ConversionError unless they divide its width."""
        heads = self.settle(name, guess, reason)
        if not heads or width % heads:
            divided = f"by {heads} heads" if heads else "into heads of 64 channels"
            raise ConversionError(
                f"width {width} does not divide {divided}; {OPTIONS[name]} says how many there are"
            )
        return heads

    def patch_grid(self, num_patches) -> tuple[int, int]:
        """Patches down and across; raises ConversionError unless they are as many as positions."""
        side = math.isqrt(num_patches)
        grid = self.settle("patch_grid", (side, side), f"{num_patches} positions, as a square")
        if math.prod(grid) != num_patches:
            raise ConversionError(
                f"a grid of {grid[0]} by {grid[1]} patches does not have {num_patches} positions; "
                f"{OPTIONS['patch_grid']} says how many are down and across"
            )
        return grid


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**20
