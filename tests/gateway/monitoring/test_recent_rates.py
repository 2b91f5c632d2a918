import time

import pytest

from gateway.inference.answer_cache import AnswerCache
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.recent_rates import Pulse, rates


def test_rates_are_of_predictions_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    cache = AnswerCache(0)
    metrics.watch_cache(cache)
    pulse = Pulse(metrics)
    metrics.of_requests("POST", "/predict/live", 200).observe(9)  # before the first look
    first = pulse.look()
    for milliseconds in range(100):
        metrics.of_requests("POST", "/predict/live", 200).observe(milliseconds / 1_000)
    for _ in range(2):
        metrics.of_requests("POST", "/predict/batch", 503).observe(0.0001)
    metrics.of_requests("GET", "/metrics", 500).observe(5)
    cache.hits, cache.misses = 30, 90
    monkeypatch.setattr(time, "monotonic", lambda: first.at + 10)
    told = rates([first, pulse.look()])
    assert told is not None
    assert told.seconds == pytest.approx(10)
    assert told.requests_per_s == pytest.approx(10.2)
    assert told.texts_per_s == pytest.approx(12)
    assert told.failed_share == pytest.approx(2 / 102)
    assert told.hit_share == pytest.approx(0.25)
    # Within the buckets that they fall into: 25 to 50 ms, and 50 to 100 ms.
    assert told.p50_ms == pytest.approx(49, abs=2)
    assert told.p99_ms == pytest.approx(98, abs=2)


def test_where_nothing_happened_there_is_no_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(Metrics())
    first = pulse.look()
    assert rates([first]) is None
    monkeypatch.setattr(time, "monotonic", lambda: first.at + 2)
    told = rates([first, pulse.look()])
    assert told is not None
    assert (told.requests_per_s, told.failed_share, told.p50_ms, told.p99_ms, told.hit_share) == (
        0,
        None,
        None,
        None,
        None,
    )


def test_what_took_longer_than_the_last_bound_is_told_as_that_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    pulse = Pulse(metrics)
    first = pulse.look()
    metrics.of_requests("POST", "/predict/live", 200).observe(1_000)
    monkeypatch.setattr(time, "monotonic", lambda: first.at + 2)
    told = rates([first, pulse.look()])
    assert told is not None
    assert told.p50_ms == 60_000


def test_a_clock_that_is_set_changes_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    pulse = Pulse(Metrics())
    for step_s in (0, -3_600, 7_200):
        now = time.time()
        monkeypatch.setattr(time, "time", lambda set_to=now + step_s: set_to)
        pulse._readings.append(pulse.look())
    told = pulse.recent()
    assert told is not None
    assert 0 < told.seconds < 60
    assert all(abs(at - time.time()) < 60 for at, _ in pulse.history())
