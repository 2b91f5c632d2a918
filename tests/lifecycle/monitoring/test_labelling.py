"""Random live texts are labelled in order until the labels decide, whoever gives them."""

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from common.settings import Settings
from lifecycle.monitoring.labelling import LEAST_TEXTS, MOST_TEXTS, begin, conclude, standing, texts_to_label
from storage import events, jobs, label_draws
from storage.database import Database
from storage.events import EventKind
from storage.feedback import LabelledText, add_feedback, is_held_out, text_hash
from storage.sampled_predictions import MOST_CHARACTERS
from tests.lifecycle.conftest import Served, hollow_bundle, publish
from tests.sampled_texts import asked, unlike

ANNA, BEN = "console:anna", "console:ben"
TEXTS = [*unlike(210), *unlike(90, held_out=True)]
random.Random(0).shuffle(TEXTS)


@pytest.fixture
def models(tmp_path: Path) -> Served:
    models = Served(tmp_path, 0, {})
    bundle = hollow_bundle(tmp_path)
    for version in (1, 2):
        publish(models, bundle, version)
    models.repository.deploy(1)
    return models


@pytest.fixture
def settings(tmp_path: Path, models: Served) -> Settings:
    return Settings(state_dir=tmp_path / "state", model_repository=models.directory / "triton_repo")


@pytest.fixture
def database(settings: Settings) -> Database:
    return Database(settings.database)


def told(database: Database, texts: Iterable[str], right: Callable[[str], bool], source: str = ANNA) -> None:
    """Label texts which were all predicted to be positive."""
    rows = [LabelledText(text, "Positive" if right(text) else "Negative") for text in texts]
    add_feedback(database, rows, source)


def never(_: str) -> bool:
    return False


def every_other(texts: Sequence[str]) -> Callable[[str], bool]:
    return set(texts[::2]).__contains__


def test_texts_are_drawn_whether_or_not_they_are_held_out_known_or_sent_often(
    settings: Settings, database: Database
) -> None:
    """Anything else would make the drawn texts unlike the live ones."""
    asked(database, TEXTS[: LEAST_TEXTS - 2])
    asked(database, ["word " * MOST_CHARACTERS, "\0 odd"], positive=0.5)
    assert texts_to_label(settings, database, ANNA, 10).figures() == {"standing": None, "texts": []}
    asked(database, [TEXTS[0], TEXTS[0]])
    batch = texts_to_label(settings, database, ANNA, LEAST_TEXTS)
    assert sorted(batch.texts) == sorted(TEXTS[: LEAST_TEXTS - 2])
    assert {is_held_out(text_hash(text)) for text in batch.texts} == {True, False}
    assert batch.standing is not None
    assert (batch.standing.texts, batch.standing.labels, batch.standing.accuracy) == (LEAST_TEXTS, 0, None)
    assert str(batch.standing) == "no label yet; too early to say how many decide whether it is under 80 %"


def test_only_the_newest_texts_are_drawn(settings: Settings, database: Database) -> None:
    asked(database, TEXTS)
    newer = [f"newer {number}" for number in range(MOST_TEXTS)]
    asked(database, newer)
    batch = texts_to_label(settings, database, ANNA, 300)
    assert len(batch.texts) == 300
    assert set(batch.texts) < set(newer)


def test_the_accuracy_and_f1_of_random_labels_are_those_of_all_texts(settings: Settings, database: Database) -> None:
    """Over many series, the mean is within a few standard errors of the true values."""
    asked(database, TEXTS)
    right = set(TEXTS[:225])
    told(database, TEXTS, right.__contains__)
    found = []
    for _ in range(60):
        begin(settings, database)
        series = label_draws.read_series(database, settings.trusted_sources)
        assert series is not None
        first = [draw.text in right for draw in series.draws[:60]]
        found.append(np.mean(first))
    deviation = (0.75 * 0.25 / 60 * 240 / 299) ** 0.5
    assert abs(np.mean(found) - 0.75) < 4 * deviation / len(found) ** 0.5
    assert (result := standing(settings, database, 1)) is not None
    assert result.accuracy == 0.75
    # Of 300 positive predictions 225 are right; nothing was predicted to be negative.
    assert result.macro_f1 == pytest.approx((2 * 225 / (225 + 300) + 0) / 2)
    assert (result.low, result.high, result.is_under) == (0.75, 0.75, True)


def test_labels_count_up_to_the_first_text_that_waits_for_one(settings: Settings, database: Database) -> None:
    asked(database, TEXTS)
    first = texts_to_label(settings, database, ANNA, 10).texts
    second = texts_to_label(settings, database, BEN, 10).texts
    assert not set(first) & set(second)
    told(database, second, never, BEN)
    told(database, first[:4], every_other(first))
    assert (found := standing(settings, database, 1)) is not None
    assert (found.labels, found.accuracy) == (4, 0.5)
    assert texts_to_label(settings, database, ANNA, 10).texts[:6] == first[4:], "what one has begun comes first"
    label_draws.skip(database, text_hash(first[4]))
    told(database, first[5:], every_other(first))
    assert (found := standing(settings, database, 1)) is not None
    assert (found.labels, found.skipped, found.texts) == (19, 1, 299)
    assert found.accuracy == pytest.approx(4 / 19)
    again = standing(settings, Database(settings.database), 1)
    assert again == found, "a restart forgets nothing"


def test_labels_of_sources_that_are_not_trusted_do_not_count(settings: Settings, database: Database) -> None:
    asked(database, TEXTS)
    texts = texts_to_label(settings, database, ANNA, 10).texts
    told(database, texts, never, "anonymous")
    assert texts_to_label(settings, database, ANNA, 10).texts == texts
    trusting = settings.model_copy(update={"trusted_sources": "anonymous"})
    assert (found := standing(trusting, database, 1)) is not None
    assert found.labels == 10


def test_the_labels_that_decide_end_the_series_and_request_one_check(settings: Settings, database: Database) -> None:
    asked(database, TEXTS)
    labels = 0
    while texts := texts_to_label(settings, database, ANNA, 1).texts:
        told(database, texts, never)
        found = conclude(settings, database)
        labels += 1
    assert found is not None
    assert found.is_under
    assert found.labels == labels < 10
    assert found.problem == f"accuracy on live texts by random labels is {found.found}, below 0.8"
    assert str(found).endswith("; decided: it is under 80 %")
    conclude(settings, database)
    (event,) = events.newest(database, 10, EventKind.LABELS_DECIDED)
    assert event.version == 1
    assert event.message == f"Labels of random live texts of version 1: {found}."
    job = jobs.waiting(database, jobs.CHECK)
    assert job is not None
    assert job.reason == "labels of live texts have decided"
    begin(settings, database)
    assert (anew := standing(settings, database, 1)) is not None
    assert anew.is_under is None


def test_right_predictions_decide_too(settings: Settings, database: Database) -> None:
    asked(database, TEXTS)
    while texts := texts_to_label(settings, database, ANNA, 1).texts:
        told(database, texts, lambda _: True)
    assert (found := conclude(settings, database)) is not None
    assert (found.is_under, found.problem) == (False, "")
    assert 10 < found.labels < 60
    assert found.macro_f1 == 1
    assert str(found) == (
        f"100 % ({100 * found.low:.0f} to 100) after {found.labels} labels; decided: it is not under 80 %"
    )


def test_another_deployed_version_begins_another_series(settings: Settings, database: Database, models: Served) -> None:
    asked(database, TEXTS)
    told(database, texts_to_label(settings, database, ANNA, 10).texts, never)
    models.repository.deploy(2)
    assert conclude(settings, database) is None
    assert texts_to_label(settings, database, ANNA, 10).standing is None, "nothing of it was sampled yet"
    asked(database, TEXTS[:250], version=2)
    batch = texts_to_label(settings, database, ANNA, 10)
    assert batch.standing is not None
    assert (batch.standing.version, batch.standing.texts) == (2, 250)
    assert standing(settings, database, 1) is None
