import time

import pytest

from gateway.inference.answer_cache import AnswerCache
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.recent_rates import INTERVAL_S, RECENT_S, Pulse, rates


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
    metrics.of_requests("POST", "/console/try", 200).observe(0.03)
    metrics.tried_texts += 8
    metrics.of_requests("GET", "/metrics", 500).observe(5)
    cache.hits, cache.misses = 30, 90
    monkeypatch.setattr(time, "monotonic", lambda: first.at + 10)
    told = rates([first, pulse.look()])
    assert told is not None
    assert told.requests_per_s == pytest.approx(10.3)
    assert told.texts_per_s == pytest.approx(12.8)
    assert told.failed_share == pytest.approx(2 / 103)
    assert told.hit_share == pytest.approx(0.25)
    # Within the buckets that they fall into: 25 to 50 ms, and 50 to 100 ms.
    assert told.p50_ms == pytest.approx(49, abs=2)
    assert told.p99_ms == pytest.approx(98, abs=2)


def test_a_single_request_makes_a_line_of_its_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    pulse = Pulse(metrics)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for step in range(20):
        if step == 2:
            metrics.of_requests("POST", "/predict/live", 200).observe(0.02)
        pulse._readings.append(pulse.look())
        now += INTERVAL_S
    found = [rates_ for _, rates_ in pulse.history()]
    assert [item.requests_per_s > 0 for item in found] == [False, True] + [False] * 17
    has_latency = [item.p99_ms is not None for item in found]
    assert has_latency == [False] + [True] * round(RECENT_S / INTERVAL_S) + [False] * 3


def test_of_few_requests_the_times_are_no_guess_within_a_wide_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    pulse = Pulse(metrics)
    first = pulse.look()
    for seconds in (0.004, 0.004, 1.01):
        metrics.of_requests("POST", "/predict/live", 200).observe(seconds)
    monkeypatch.setattr(time, "monotonic", lambda: first.at + 10)
    told = rates([first, pulse.look()])
    assert told is not None
    assert told.requests == 3
    assert told.p99_ms == 2_500, "all took at most that long; an estimate of 2,488 ms would pretend to be exact"
    assert told.p50_ms is not None
    assert told.p50_ms < 5


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
    metrics = Metrics()
    pulse = Pulse(metrics)
    for step_s in (0, -3_600, 7_200):
        metrics.of_requests("POST", "/predict/live", 200).observe(0.02)
        now = time.time()
        monkeypatch.setattr(time, "time", lambda set_to=now + step_s: set_to)
        pulse._readings.append(pulse.look())
    told = pulse.recent()
    assert told is not None
    assert told.requests_per_s > 2 / 60
    assert all(abs(at - time.time()) < 60 for at, _ in pulse.history())
