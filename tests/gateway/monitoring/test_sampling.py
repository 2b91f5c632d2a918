"""The sample of what is asked: whatever route a text came by, evenly of all, and never in a request's way."""

import asyncio
import logging
import random
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text as sql

from common.settings import Settings
from gateway.monitoring import sampling
from gateway.monitoring.metrics import Metrics
from gateway.monitoring.sampling import Sampler
from serving.client.prediction import Prediction
from storage.database import Database
from storage.lazy_database import Storage
from storage.sampled_predictions import AnsweredText, newest_sample
from storage.tables import SampledPrediction
from tests.gateway.conftest import gateway_client, until
from tests.gateway.fake_triton import MODEL_READS, FakeTriton

MANY = 60_000
"""Texts a minute: more than a test sends."""


gateway = partial(gateway_client, sample_per_minute=MANY)


@pytest.fixture
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "INTERVAL_S", 0.1)


def live(http: httpx.Client, text: str) -> None:
    assert http.post("/predict/live", json={"text": text}).status_code == 200


def sample(database: Database) -> list[SampledPrediction]:
    return newest_sample(database, 10_000)


def outcome(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[1])
        for line in lines
        if line.startswith(f'sentiment_sampled_predictions_total{{outcome="{name}"')
    )


@pytest.mark.usefixtures("_hurried")
def test_texts_are_kept_with_their_answers_by_whatever_route_they_came(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    triton.version = 4
    long = "a" * (MODEL_READS + 1)
    with gateway(triton, tmp_path) as http:
        live(http, "fine")
        live(http, "fine")  # known by now
        assert http.post("/predict/batch", json={"texts": ["fine", "terrible", long]}).status_code == 200
        assert http.post("/predict/live", json={"text": ""}).status_code == 422
        until(lambda: len(sample(database)) == 5)
        until(lambda: outcome(http, "kept") == 5)
    assert [row.text for row in sample(database)] == ["fine", "fine", "fine", "terrible", long]
    *_, terrible, cut = sample(database)
    assert (terrible.label, terrible.version, terrible.truncated) == ("Negative", 4, False)
    assert terrible.probabilities == pytest.approx([0.98754, 0.01246], abs=1e-5)
    assert cut.truncated


def test_what_was_taken_last_is_written_at_the_end_without_texts_where_they_are_not_to_be_kept(
    triton: FakeTriton, tmp_path: Path, database: Database
) -> None:
    with gateway(triton, tmp_path, sample_texts=False) as http:
        live(http, "fine")
        assert sample(database) == []
    (row,) = sample(database)
    assert (row.text, row.label, row.characters) == (None, "Positive", 4)


@pytest.mark.usefixtures("_hurried")
def test_nothing_is_kept_where_nothing_is_to_be(triton: FakeTriton, tmp_path: Path, database: Database) -> None:
    with gateway(triton, tmp_path, sample_per_minute=0) as http:
        live(http, "fine")
        assert http.post("/predict/batch", json={"texts": ["fine", "terrible"]}).status_code == 200
    assert sample(database) == []


@pytest.mark.usefixtures("_hurried")
def test_a_database_that_refuses_or_hangs_touches_no_request(
    triton: FakeTriton, tmp_path: Path, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with gateway(triton, tmp_path) as http:
        with database.transaction() as session:
            session.execute(sql("ALTER TABLE sampled_predictions RENAME TO elsewhere"))
        for number in range(3):
            live(http, f"lost {number}")
            until(lambda number=number: outcome(http, "lost") == number + 1)  # type: ignore[misc]
        with database.transaction() as session:
            session.execute(sql("ALTER TABLE elsewhere RENAME TO sampled_predictions"))
        live(http, "kept")
        until(lambda: outcome(http, "kept") == 1)
        with database.transaction():  # nobody else can write meanwhile
            for number in range(100):
                live(http, f"waiting {number}")
        until(lambda: outcome(http, "kept") == 101)
    assert {row.text for row in sample(database)} == {"kept", *(f"waiting {number}" for number in range(100))}
    failed, works = [text for text in caplog.messages if "'prediction sample'" in text]
    assert "'prediction sample' failed and is tried again: OperationalError" in failed
    assert "works again after 3 failures" in works


class Collected:
    """What samplers write, in the place of the database."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, per_minute: int) -> None:
        self.rows: list[AnsweredText] = []
        self.may_write = threading.Event()
        self.may_write.set()
        monkeypatch.setattr(sampling, "add_sample", self._add)
        settings = Settings(state_dir=tmp_path)
        self.sampler = Sampler(Storage(settings), per_minute, True, Metrics())

    def _add(self, _database: Database, answered: Sequence[AnsweredText], _keeps_texts: bool) -> None:
        assert self.may_write.wait(10)
        self.rows += answered

    def offer(self, texts: list[str]) -> None:
        prediction = Prediction("Positive", 0.9, 1, False, b"")
        if len(texts) == 1:
            self.sampler.offer(texts[0], prediction)
        else:
            self.sampler.offer_all(texts, [prediction] * len(texts))


def test_each_text_is_as_likely_as_any_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    collected = Collected(monkeypatch, tmp_path, per_minute=60)  # 10 an interval
    random.seed(13)
    texts = [str(number) for number in range(100)]
    rounds = 1_000

    async def scenario() -> None:
        for _ in range(rounds):
            start = 0
            while start < len(texts):
                size = random.choice((1, 1, 1, 2, 30))
                collected.offer(texts[start : start + size])
                start += size
            await collected.sampler.write()

    asyncio.run(scenario())
    assert len(collected.rows) == 10 * rounds
    counts = Counter(row.text for row in collected.rows)
    # Binomial with mean 100 and a standard deviation of 9.5; of 100 of them none is five away.
    assert all(50 < counts[text] < 150 for text in texts)
    # Nor is there a trend: thirds of 3,300 ± 47.
    assert all(3_060 < sum(counts[text] for text in texts[start::3]) < 3_660 for start in range(3))
    assert all(3_060 < sum(counts[text] for text in texts[33 * part : 33 * part + 33]) < 3_540 for part in range(3))


def test_memory_is_bounded_while_the_database_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    collected = Collected(monkeypatch, tmp_path, per_minute=60)

    async def scenario() -> None:
        collected.offer(["first"])
        collected.may_write.clear()
        writing = asyncio.create_task(collected.sampler.write())
        await asyncio.sleep(0.05)
        for number in range(10_000):
            collected.offer([f"text {number}"])
        collected.may_write.set()
        await writing
        await collected.sampler.write()

    asyncio.run(scenario())
    assert len(collected.rows) == 11
