"""The check: what counts as stale, and when a retraining is asked for or would be in vain."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from lifecycle import check as check_module
from lifecycle.asking import Answers
from lifecycle.check import _too_early, check, learnt_before, retraining_key, shortfalls
from lifecycle.training_data import merge
from settings import Settings
from storage import events, jobs
from storage.database import Database, now
from storage.feedback import LabelledText, add_feedback
from storage.tables import Job
from trainer.dataset import MIN_TRAIN_ROWS, load_dataset
from trainer.evaluation import Evaluation

LABELS = ("Negative", "Positive")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'sentiment.db'}")
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    rows = {
        name: "".join(f"{name} text {number},{LABELS[number % 2]}\n" for number in range(2 * MIN_TRAIN_ROWS))
        for name in ("train", "val")
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{content}")
    return Settings(train_data=tmp_path / "train.csv", val_data=tmp_path / "val.csv")


def _evaluation(texts: int, accuracy: float, macro_f1: float) -> Evaluation:
    return Evaluation(texts, accuracy, macro_f1, {}, 0, [])


def _ended(database: Database, *states: jobs.State, hours_ago: float = 0, fingerprint: str = "") -> int:
    """Retrainings, each ended as told; returns the number of the last."""
    with database.transaction() as session:
        time = now(session)
        for state in states:
            job = Job(kind=jobs.RETRAIN, state=state, reason="by the test", created_at=time, result={})
            job.ended_at = time - timedelta(hours=hours_ago)
            job.fingerprint = fingerprint
            session.add(job)
        session.flush()
        return job.id


@pytest.mark.parametrize(
    ("evaluations", "told"),
    [
        ({"validation": _evaluation(10, 0.8, 0.8), "feedback": _evaluation(100, 0.8, 0.8)}, []),
        ({"validation": _evaluation(10, 0.79, 0.8)}, ["accuracy on validation is 0.7900, under 0.8 (10 texts)"]),
        ({"validation": _evaluation(10, 0.8, 0.79)}, ["macro F1 on validation is 0.7900, under 0.8 (10 texts)"]),
        ({"validation": _evaluation(10, 0.9, 0.9), "feedback": _evaluation(99, 0.1, 0.1)}, []),
        (
            {"validation": _evaluation(10, 0.9, 0.9), "feedback": _evaluation(100, 0.1, 0.2)},
            [
                "accuracy on feedback is 0.1000, under 0.8 (100 texts)",
                "macro F1 on feedback is 0.2000, under 0.8 (100 texts)",
            ],
        ),
    ],
)
def test_what_is_under_a_threshold_is_told(evaluations: dict[str, Evaluation], told: list[str]) -> None:
    assert shortfalls(Settings(min_accuracy=0.8, min_macro_f1=0.8, min_feedback=100), evaluations) == told


@pytest.mark.parametrize(
    ("state", "is_in_vain"),
    [(jobs.SUCCEEDED, True), (jobs.REJECTED, True), (jobs.FAILED, False), (jobs.CANCELLED, False)],
)
def test_the_same_is_not_learnt_again_unless_it_came_to_no_verdict(
    database: Database, state: jobs.State, is_in_vain: bool
) -> None:
    job_id = _ended(database, state, fingerprint="the same")
    _ended(database, jobs.SUCCEEDED, fingerprint="another")
    told = f"job {job_id} has learnt from the same data with the same settings, and was {state}" if is_in_vain else ""
    assert learnt_before(database, "the same") == told
    assert learnt_before(database, "something new") == ""


def test_other_data_or_other_ways_to_learn_are_not_the_same() -> None:
    plain = retraining_key(Settings(), "data")
    assert retraining_key(Settings(port=9000, min_accuracy=0.5), "data") == plain
    keys = {retraining_key(Settings(epochs=epochs, seed=seed), "data") for epochs in (2, 3) for seed in (13, 14)}
    assert len(keys | {plain, retraining_key(Settings(), "other data")}) == 5


@pytest.mark.parametrize(
    ("in_vain", "pause_h"), [(1, 1), (2, 2), (3, 4), (4, 8), (8, 128), (9, 24 * 7), (10, 24 * 7), (1_100, 24 * 7)]
)
def test_the_pause_after_retrainings_in_vain_doubles_up_to_a_week(
    database: Database, in_vain: int, pause_h: int
) -> None:
    _ended(database, jobs.REJECTED, jobs.FAILED, jobs.SUCCEEDED, hours_ago=pause_h - 0.1)
    states = [jobs.FAILED if number % 2 else jobs.REJECTED for number in range(in_vain)]
    _ended(database, *states, hours_ago=pause_h - 0.1)
    assert _too_early(database).startswith("the last was in vain" if in_vain == 1 else f"the last {in_vain} were in")
    with database.transaction() as session:
        for job in session.scalars(select(Job)):
            assert job.ended_at is not None
            job.ended_at -= timedelta(hours=0.2)
    assert _too_early(database) == ""


def test_nothing_waits_after_a_success_or_without_a_verdict(database: Database) -> None:
    assert _too_early(database) == ""
    _ended(database, jobs.CANCELLED, jobs.SKIPPED)
    assert _too_early(database) == ""
    _ended(database, jobs.REJECTED, jobs.REJECTED, jobs.SUCCEEDED)
    assert _too_early(database) == ""


class Served:
    """A model that answers the texts of the files rightly, or all of them alike."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_right = False
        self.version = 1
        monkeypatch.setattr(check_module, "ask", self._ask)

    def _ask(self, _address: str, texts: list[str]) -> Answers:
        labels = [LABELS[int(text.split()[-1]) % 2 if self.is_right else 0] for text in texts]
        return Answers(self.version, labels, np.full(len(texts), 0.9, np.float32))


def _check(settings: Settings, database: Database) -> jobs.Outcome:
    job = jobs.begin(database, jobs.enqueue(database, jobs.CHECK, "by the test").id)
    assert job is not None
    outcome = check(settings, database, job)
    with database.transaction() as session:
        jobs.end(session, job.id, outcome)
    return outcome


def test_what_is_stale_is_told_once_and_asks_for_a_retraining(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(monkeypatch)
    first = _check(settings, database)
    assert first.result["stale"]
    assert first.result["problems"][0] == "accuracy on validation is 0.5000, under 0.8 (20 texts)"
    asked = jobs.waiting(database, jobs.RETRAIN)
    assert asked is not None
    assert first.result["decision"] == f"Retraining is job {asked.id}."
    assert _check(settings, database).result["decision"] == first.result["decision"]
    assert [event.kind for event in events.newest(database, 10)] == ["checked", "stale", "checked"]
    assert len(events.due_mails(database)) == 1
    # Another version is another matter, and so is the same after it was good.
    served.version = 2
    _check(settings, database)
    served.is_right = True
    good = _check(settings, database)
    assert (good.result["stale"], good.result["problems"]) == (False, [])
    assert "decision" not in good.result
    served.is_right = False
    _check(settings, database)
    assert [event.version for event in events.newest(database, 10, "stale")] == [2, 2, 1]


def test_no_retraining_is_asked_for_until_there_is_something_new_to_learn(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Served(monkeypatch)
    _check(settings, database)
    asked = jobs.waiting(database, jobs.RETRAIN)
    assert asked is not None
    merged = merge(database, load_dataset(settings.train_data, settings.val_data))
    jobs.set_fingerprint(database, asked.id, retraining_key(settings, merged.fingerprint))
    jobs.begin(database, asked.id)
    with database.transaction() as session:
        jobs.end(session, asked.id, jobs.Outcome(jobs.REJECTED, {}))
    decisions = [_check(settings, database).result["decision"]]
    add_feedback(database, [LabelledText(f"new text {number}", LABELS[number % 2]) for number in range(9)], "api")
    decisions.append(_check(settings, database).result["decision"])
    assert jobs.waiting(database, jobs.RETRAIN) is None
    with database.transaction() as session:
        ended = session.get_one(Job, asked.id)
        assert ended.ended_at is not None
        ended.ended_at -= timedelta(hours=1)
    decisions.append(_check(settings, database).result["decision"])
    assert [decision.partition(",")[0].partition(" in vain")[0] for decision in decisions] == [
        f"No retraining: job {asked.id} has learnt from the same data with the same settings",
        "No retraining: the last was",
        f"Retraining is job {jobs.enqueue(database, jobs.RETRAIN, '').id}.",
    ]
