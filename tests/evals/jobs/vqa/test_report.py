"""Tables of a run of questions."""

from evals.jobs.vqa.report import format_table, table_rows


def test_a_table_has_means_over_seeds():
    arms = {
        name: {"label": name[:1], "strength": name[2:4]}
        for name in ("e", "r-50-seed0", "r-50-seed1")
    }
    speed = {"task": "speed", "arm": "all"} | {
        "first_token_ms": {"e": 4.0, "r-50-seed0": 2.0, "r-50-seed1": 4.0},
        "next_token_ms": {"e": 1.0},
        "cache_bytes": dict.fromkeys(arms, 2_000_000),
    }
    points = [
        {"arm": name, "task": "gqa", "score": score, "identical": 100.0, "num_questions": 2}
        for name, score in zip(arms, (50.0, 40.0, 42.0))
    ]
    results = {"points": [*points, speed], "arms": arms, "config": {"dataset": "gqa"}}
    assert format_table(table_rows(results)).splitlines()[2:] == [
        "| e |  | 50.0 | 100.0 | 4.0 | 1.00 | 2.0 |",
        "| r | 50 | 41.0 ± 1.4 | 100.0 ± 0.0 | 3.0 |  | 2.0 |",
    ]


def test_a_table_has_rows_for_each_size():
    points = [
        {"arm": "e", "task": "digits", "score": 50.0, "identical": 100.0, "pixels": px}
        for px in (64, 96)
    ]
    speeds = [
        {"arm": "all", "task": "speed", "pixels": px, "first_token_ms": {"e": px / 10}}
        | {"next_token_ms": {}, "cache_bytes": {}}
        for px in (64, 96)
    ]
    arms, config = {"e": {"label": "exact", "strength": ""}}, {"dataset": "digits"}
    table = format_table(table_rows({"points": points + speeds, "arms": arms, "config": config}))
    assert table.splitlines()[2:] == [
        "| 64 | exact |  | 50.0 | 100.0 | 6.4 |",
        "| 96 | exact |  | 50.0 | 100.0 | 9.6 |",
    ]
