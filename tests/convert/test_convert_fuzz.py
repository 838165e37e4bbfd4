"""Seeded damage to every file of every layout; `python -m tests.fuzz` does more of it."""

import pytest

from tests import fuzz, zoo


@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", zoo.CASES)
def test_damage_ends_cleanly(tmp_path, case, rounds):
    statuses = {}
    for kind, status in fuzz.campaign(case, tmp_path, rounds):
        statuses.setdefault(kind, set()).add(status)
    always_refused = {f"tensors {mutate.__name__}" for mutate in fuzz.TENSORS}
    always_refused |= {"body cut", "header cut"}
    assert all(statuses[kind] == {1} for kind in always_refused)
    assert statuses["body flip"] == {0}  # another number, no more
