"""A journal of a run that may be killed at any moment."""

import pytest

from evals.running.journal import Journal

VALUES = [["a\nb", None], [], ["é\u2028"]]


def test_a_journal_goes_on_behind_its_last_whole_line(tmp_path):
    journal = Journal(tmp_path / "x.jsonl")
    assert journal.read() == []
    for value in VALUES:
        journal.append(value)
    content = journal.file.read_bytes()
    for length in range(len(content) + 1):
        journal.file.write_bytes(content[:length])
        known = journal.read()
        assert known == VALUES[: content[:length].count(b"\n")]
        journal.append(3)
        assert journal.read() == [*known, 3]


def test_a_damaged_journal_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"[1]\n[\n[2]\n")
    with pytest.raises(ValueError, match=r"x\.jsonl is damaged .*: delete it"):
        Journal(tmp_path / "x.jsonl").read()
