import time

import pytest

from evals.running.timing import time_in_turns


def test_an_arm_that_fails_on_the_device_is_left_out_and_said(capsys):
    def out_of_memory():
        raise RuntimeError("RESOURCE_EXHAUSTED\nand how much")

    timings = time_in_turns({"fine": lambda: None, "large": out_of_memory}, repeats=3)
    assert list(timings) == ["fine"] and len(timings["fine"].seconds) == 3
    assert capsys.readouterr().err == "large is left out: RESOURCE_EXHAUSTED\n"
    with pytest.raises(ZeroDivisionError):
        time_in_turns({"wrong": lambda: 1 / 0}, repeats=1)


def test_each_run_waits_for_the_one_before_to_settle():
    ends, waits = [time.perf_counter()], []

    def arm():
        waits.append(time.perf_counter() - ends[-1])
        ends.append(time.perf_counter())

    timings = time_in_turns({"a": arm, "b": arm}, repeats=2, settle=0.01)
    assert min(waits[2:]) > 0.01  # of the first two, which compile, no time is kept
    assert timings["a"].median < 0.01  # the wait is no part of the time


def test_where_nothing_is_repeated_the_first_run_is_the_time():
    calls = []
    timings = time_in_turns({"a": lambda: calls.append(time.sleep(0.01))}, repeats=0)
    assert len(calls) == 1 and len(timings["a"].seconds) == 1
    assert timings["a"].median >= 0.01 and timings["a"].compile_seconds == 0
