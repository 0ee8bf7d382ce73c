"""Phases: duration, order, errors and repetitions."""

from collections.abc import Iterator

import pytest

from cxlp.utils.profiling import PhaseTimes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that the test advances."""
    hand = [100.0]
    monkeypatch.setattr(PhaseTimes, "now", staticmethod(lambda: hand[0]))
    yield hand


def test_repeated_phases_are_summed_in_the_order_of_their_starts(clock: list[float]) -> None:
    times = PhaseTimes()
    for phase, seconds in (("pooling", 3.0), ("SVM", 1.0), ("pooling", 0.5)):
        with times.measure(phase):
            clock[0] += seconds
        clock[0] += 1000  # the time between phases is not counted
    assert list(times.items()) == [("pooling", 3.5), ("SVM", 1.0)]


def test_a_nested_phase_counts_for_both_and_is_listed_second(clock: list[float]) -> None:
    times = PhaseTimes()
    with times.measure("fit"):
        clock[0] += 1
        with times.measure("SVM"):
            clock[0] += 2
    assert list(times.items()) == [("fit", 3.0), ("SVM", 2.0)]


def test_a_failing_phase_is_timed_and_its_error_propagates(clock: list[float]) -> None:
    times = PhaseTimes()
    with pytest.raises(ValueError, match="mine"), times.measure("PCA"):
        clock[0] += 2
        raise ValueError("mine")
    assert times == {"PCA": 2.0}


def test_the_clock_waits_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[bool] = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", lambda: waited.append(True))
    monkeypatch.setattr("time.perf_counter", lambda: float(len(waited)))
    assert PhaseTimes.now() == 1.0  # read after the wait, not before it
