"""A version that is tried on live texts, as a gateway asks it: who is answered by which, and what is counted."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

import grpc
import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from gateway.canary import challenger, release_watch, shadow_compare
from gateway.canary.challenger import position_of
from gateway.canary.shadow_compare import Findings
from gateway.inference.answer_cache import AnswerCache
from gateway.monitoring import sampling
from storage import releases
from storage.database import Database
from storage.releases import CANARY, SHADOW, Mode
from storage.sampled_predictions import newest_sample
from storage.tables import Figures, Release
from tests.e2e.conftest import wait_for
from tests.gateway.conftest import gateway_client
from tests.gateway.fake_triton import FakeTriton

CHAMPION, CHALLENGER = 1, 2
NONE = 1e-9
"""As good as no share."""
TEXTS = [f"{'terrible' if number % 3 else 'fine'} text {number}" for number in range(120)]


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_watch, "INTERVAL_S", 0.1)


gateway = partial(gateway_client, release_compared=1)


def begin(database: Database, mode: Mode, *steps: float) -> int:
    with database.transaction() as session:
        return releases.begin(session, CHALLENGER, CHAMPION, mode, steps, "by the test").id


def end(database: Database, release_id: int) -> None:
    with database.transaction() as session:
        release = releases.locked(session, release_id)
        assert release is not None
        releases.end(session, release, releases.STOPPED, "by the test")


def figures(database: Database) -> Figures:
    with database.reading() as session:
        release = releases.last(session)
    assert release is not None
    return release.figures


def versions(http: httpx.Client, texts: list[str]) -> list[int]:
    answers = [http.post("/predict/live", json={"text": text}) for text in texts]
    assert {answer.status_code for answer in answers} == {200}
    return [int(answer.headers["x-model-version"]) for answer in answers]


def chosen(texts: list[str], share: float) -> list[int]:
    return [CHALLENGER if position_of(text) < share else CHAMPION for text in texts]


def test_a_share_is_right_within_a_point_and_a_larger_one_has_those_of_the_smaller() -> None:
    positions = [position_of(f"a live text, the {number}th of many") for number in range(50_000)]
    for share in (0.05, 0.25, 0.5):
        assert sum(position < share for position in positions) / len(positions) == pytest.approx(share, abs=0.01)
    # For ever: a gateway of another release, or on another machine, must decide alike.
    assert position_of("I love this product!") == pytest.approx(0.0357, abs=1e-4)


def test_a_canary_answers_the_same_texts_each_time_and_each_answer_names_its_version(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    begin(database, CANARY, 0.3, 0.6)
    with gateway(triton, tmp_path) as http:
        for _ in range(2):  # the second time the answers are known
            assert versions(http, TEXTS) == chosen(TEXTS, 0.3)
        with database.transaction() as session:
            release = releases.running(session)
            assert release is not None
            release.step = 1
        wait_for(lambda: versions(http, TEXTS) == chosen(TEXTS, 0.6), 60, "the share to grow")
        batch = http.post("/predict/batch", json={"texts": TEXTS})
        assert batch.headers["x-model-version"] == str(CHAMPION)


def test_a_text_keeps_its_version_when_a_gateway_starts_and_is_the_champions_when_the_canary_ends(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    release = begin(database, CANARY, 0.5)
    with gateway(triton, tmp_path) as http:
        assert versions(http, TEXTS) == chosen(TEXTS, 0.5)
    with gateway(triton, tmp_path) as http:
        assert versions(http, TEXTS) == chosen(TEXTS, 0.5)
        end(database, release)
        wait_for(lambda: set(versions(http, TEXTS)) == {CHAMPION}, 60, "the canary to end")


@pytest.mark.parametrize(
    "error", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INVALID_ARGUMENT]
)
def test_what_a_challenger_fails_to_answer_the_champion_does_and_it_is_counted(
    triton: FakeTriton, tmp_path: Path, database: Database, error: grpc.StatusCode
) -> None:
    begin(database, CANARY, 0.5)
    triton.challenger_error = error
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        assert set(versions(http, TEXTS)) == {CHAMPION}
        failed = chosen(TEXTS, 0.5).count(CHALLENGER)
        wait_for(lambda: figures(database).get("failed") == failed, 60, "failures to be counted")
    assert figures(database)["failed_in_a_row"] == failed
    assert "answered" not in figures(database)


def test_a_challenger_that_hangs_holds_nobody_up_for_long(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(challenger, "LONGEST_CALL_S", 0.2)
    begin(database, CANARY, 1.0)
    triton.challenger_delay_s = 5
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        answer = http.post("/predict/live", json={"text": "fine"})
        assert (answer.status_code, answer.headers["x-model-version"]) == (200, str(CHAMPION))
        wait_for(lambda: figures(database).get("late") == 1, 60, "it to be counted as late")
        triton.challenger_delay_s = 0
    assert "failed" not in figures(database)


@pytest.mark.parametrize(
    "details", ["", "Failed to increase the shared memory pool size for key 'x'. There is no shared memory left."]
)
def test_what_a_full_triton_does_not_take_is_no_fault_of_the_challenger(
    triton: FakeTriton, tmp_path: Path, database: Database, details: str
) -> None:
    begin(database, CANARY, 1.0)
    triton.challenger_error = grpc.StatusCode.INTERNAL if details else grpc.StatusCode.RESOURCE_EXHAUSTED
    triton.challenger_details = details or "no room"
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        assert versions(http, ["fine"]) == [CHAMPION]
        triton.challenger_error = None
        assert versions(http, ["fine too"]) == [CHALLENGER]
        wait_for(lambda: figures(database).get("answered") == 1, 60, "the answer to be counted")
    assert "failed" not in figures(database)


def test_a_text_that_is_sent_over_and_over_is_compared_once(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AnswerCache, "get", lambda *_: None)  # as where other texts have driven it out
    begin(database, SHADOW)
    with gateway(triton, tmp_path) as http:
        versions(http, ["fine"] * 20 + ["terrible"])
        wait_for(lambda: figures(database).get("answered") == 2, 60, "both to be compared")
        versions(http, ["fine"] * 20 + ["good"])
        wait_for(lambda: figures(database).get("answered", 0) > 2, 60, "the third to be compared")
    assert figures(database)["answered"] == 3


def test_what_was_written_down_is_not_counted_again_where_reading_fails_after_it(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(database, CANARY, 1.0)
    read = releases.running
    failures = iter([True] * 5)

    def failing(session: Session) -> Release | None:
        if figures(database).get("answered") and next(failures, False):
            raise OperationalError("select", {}, Exception("the database has gone away"))
        return read(session)

    monkeypatch.setattr(releases, "running", failing)
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        assert versions(http, ["fine"]) == [CHALLENGER]
        wait_for(lambda: next(failures, None) is None, 60, "the reading to fail some times")
        assert versions(http, ["fine too"]) == [CHALLENGER]
        wait_for(lambda: figures(database)["answered"] > 1, 60, "the second answer to be counted")
    assert figures(database)["answered"] == 2


def test_a_model_that_nobody_answers_for_is_no_fault_of_the_challenger(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    begin(database, CANARY, 1.0)
    triton.challenger_error = triton.error = grpc.StatusCode.UNAVAILABLE
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        assert http.post("/predict/live", json={"text": "fine"}).status_code == 503
        triton.challenger_error = triton.error = None
        wait_for(lambda: http.get("/health/ready").is_success, 60, "the model to be ready")
        assert versions(http, ["fine too"]) == [CHALLENGER]
        wait_for(lambda: figures(database).get("answered") == 1, 60, "the answer to be counted")
    assert "failed" not in figures(database)


def test_a_shadow_answers_nobody_and_its_answers_are_held_against_the_champions(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    long = " ".join(["fine"] * 20)
    triton.otherwise = {TEXTS[0], long}
    release = begin(database, SHADOW)
    with gateway(triton, tmp_path) as http:
        assert set(versions(http, [*TEXTS[:20], long])) == {CHAMPION}
        wait_for(lambda: figures(database).get("answered") == 21, 60, "all to be compared")
    found = figures(database)
    assert found["calls"] > 0
    assert min(found["champion_ms"], found["challenger_ms"]) > 0
    parts = {name: (part["texts"], part["differ"]) for name, part in found["parts"].items()}
    assert parts == {"all": (21, 2), "up to 8 words": (20, 1), "17 to 32 words": (1, 1)}
    assert found["parts"]["all"]["champion"] == pytest.approx(21 * triton.score, rel=1e-4)
    differing = releases.differences(database, release, 10)
    assert Counter(item.text for item in differing) == {TEXTS[0]: 1, long: 1}
    assert {(item.champion_label, item.challenger_label) for item in differing} == {("Positive", "Negative")}


def test_without_texts_a_difference_is_kept_by_its_hash(triton: FakeTriton, tmp_path: Path, database: Database) -> None:
    triton.otherwise = {"fine"}
    release = begin(database, SHADOW)
    with gateway(triton, tmp_path, sample_texts=False) as http:
        versions(http, ["fine"])
        wait_for(lambda: releases.differences(database, release, 10) != [], 60, "the difference to be kept")
    (item,) = releases.differences(database, release, 10)
    assert item.text is None
    assert len(item.text_hash) == 64


def test_a_shadow_that_hangs_delays_nobody_and_what_comes_meanwhile_is_dropped(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow_compare, "MOST_WAITING", 4)
    begin(database, SHADOW)
    triton.challenger_delay_s = 4
    with gateway(triton, tmp_path) as http:
        assert set(versions(http, TEXTS)) == {CHAMPION}
        metrics = http.get("/metrics").text
        triton.challenger_delay_s = 0
    dropped = next(line for line in metrics.splitlines() if 'compared_texts_total{outcome="dropped"}' in line)
    assert float(dropped.split()[1]) > 0


def test_a_challenger_that_hangs_fails_no_request_whatever_its_deadline(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    begin(database, CANARY, 1.0)
    triton.challenger_delay_s = 6
    with gateway(triton, tmp_path, release_compared=NONE) as http, ThreadPoolExecutor(8) as callers:

        def ask(number: int) -> httpx.Response:
            deadline = {"X-Request-Timeout-Ms": "900"} if number % 2 else {}
            return http.post("/predict/live", json={"text": f"fine {number}"}, headers=deadline)

        answers = list(callers.map(ask, range(8)))
        assert {(answer.status_code, answer.headers["x-model-version"]) for answer in answers} == {(200, str(CHAMPION))}
        # Callers may have given it too little time, or filled its queue.
        wait_for(lambda: figures(database).get("late") == 8, 60, "them to be counted as late")
        triton.challenger_delay_s = 0
    assert "failed" not in figures(database)


def test_while_the_database_hangs_the_champion_answers_all_and_nothing_that_was_counted_is_lost(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(release_watch, "LONGEST_BLIND_S", 0.5)
    begin(database, CANARY, 1.0)
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        with database.transaction() as session:
            session.execute(update(Release).values(reason="by a test that holds whoever writes now up"))
            assert versions(http, ["fine"]) == [CHALLENGER]
            texts = (f"fine {number}" for number in count())
            wait_for(lambda: versions(http, [next(texts)]) == [CHAMPION], 60, "the champion to answer all")
        wait_for(lambda: versions(http, [next(texts)]) == [CHALLENGER], 60, "the canary to go on")
    assert figures(database)["answered"] >= 1
    assert "failed" not in figures(database)


def test_what_the_database_did_not_take_is_told_with_what_comes_after() -> None:
    findings = Findings()
    findings.failed(3)
    findings.compare("fine", ("Positive", 0.9), ("Negative", 0.8))
    taken = findings.take()
    findings.failed(2)
    findings.put_back(taken)
    assert (findings.figures["failed"], findings.figures["failed_in_a_row"]) == (5, 5)
    assert [item.text for item in findings.differing] == ["fine"]
    taken = findings.take()
    findings.answered(1)
    findings.put_back(taken)
    assert (findings.figures["failed"], findings.figures["failed_in_a_row"]) == (5, 0)


def test_the_time_for_which_live_texts_have_one_version_wait_counts_for_neither(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    triton.phases = (0.0, 60.0, 0.0)
    begin(database, SHADOW)
    with gateway(triton, tmp_path) as http:
        versions(http, ["fine"])
        wait_for(lambda: figures(database).get("calls") == 1, 60, "the versions to be compared")
    assert figures(database)["champion_ms"] == 0


def test_the_sample_and_the_caches_metrics_know_of_texts_that_it_answers(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "INTERVAL_S", 0.1)
    begin(database, CANARY, 1.0)
    with gateway(triton, tmp_path, release_compared=NONE, sample_per_minute=60_000) as http:
        assert versions(http, ["fine", "fine"]) == [CHALLENGER] * 2
        metrics = http.get("/metrics").text
    assert "sentiment_cache_hits_total 1.0" in metrics
    assert "sentiment_cache_misses_total 1.0" in metrics
    assert {item.version for item in newest_sample(database, 10)} == {CHALLENGER}


def test_gateways_answer_alike_and_what_they_count_is_summed(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    begin(database, CANARY, 0.3, 0.6)
    with (
        gateway(triton, tmp_path, release_compared=NONE) as first,
        gateway(triton, tmp_path, release_compared=NONE) as second,
    ):
        assert versions(first, TEXTS) == versions(second, TEXTS) == chosen(TEXTS, 0.3)
        answered = 2 * chosen(TEXTS, 0.3).count(CHALLENGER)
        wait_for(lambda: figures(database).get("answered") == answered, 60, "the counts of both")
        with database.transaction() as session:
            release = releases.running(session)
            assert release is not None
            release.step = 1
        for http in (first, second):
            wait_for(lambda http=http: versions(http, TEXTS) == chosen(TEXTS, 0.6), 60, "the share to grow")  # type: ignore[misc]


def test_a_client_that_leaves_is_no_fault_of_the_challenger(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    begin(database, CANARY, 1.0)
    triton.challenger_delay_s = 1
    with gateway(triton, tmp_path, release_compared=NONE) as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post("/predict/live", json={"text": "fine"}, timeout=0.3)
        triton.challenger_delay_s = 0
        assert versions(http, ["fine too"]) == [CHALLENGER]
        wait_for(lambda: figures(database).get("answered") == 1, 60, "the answer to be counted")
    assert "failed" not in figures(database)
