"""The check: what counts as stale, and when a retraining is asked for or would be in vain."""

import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import delete, select, update

from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from lifecycle.gates.evaluation_data import results, shortfalls
from lifecycle.gates.training_data import merge
from lifecycle.jobs import check as check_module
from lifecycle.jobs.check import _too_early, check, learnt_before
from lifecycle.jobs.circumstances import CIRCUMSTANCES, circumstances
from lifecycle.monitoring.labelling import LEAST_TEXTS as DRAWN
from lifecycle.monitoring.live_quality import LEAST_TEXTS
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import events, jobs, label_draws
from storage.database import Database, now
from storage.feedback import LabelledText, add_feedback
from storage.sampled_predictions import AnsweredText, add_sample, newest_sample
from storage.tables import Job, SampledPrediction
from tests.sampled_texts import asked, unlike
from trainer.dataset import load_dataset
from trainer.evaluation import Evaluation
from trainer.record import training_key

LABELS = ("Negative", "Positive")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    rows = {
        name: "".join(f"{name} text {number},{LABELS[number % 2]}\n" for number in range(20))
        for name in ("train", "val")
    }
    for name, content in rows.items():
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{content}")
    return Settings(
        train_data=tmp_path / "train.csv", val_data=tmp_path / "val.csv", model_repository=tmp_path / "triton_repo"
    )


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
    assert shortfalls(Settings(min_accuracy=0.8, min_macro_f1=0.8, min_feedback=100), results(evaluations)) == told


@pytest.mark.parametrize(
    ("state", "is_in_vain"),
    [(jobs.SUCCEEDED, True), (jobs.REJECTED, True), (jobs.FAILED, False), (jobs.CANCELLED, False)],
)
def test_the_same_is_not_learnt_again_unless_it_came_to_no_verdict(
    database: Database, settings: Settings, state: jobs.State, is_in_vain: bool
) -> None:
    job_id = _ended(database, state, fingerprint="the same")
    _ended(database, jobs.SUCCEEDED, fingerprint="another")
    told = f"job {job_id} ({state}) trained on the same data with the same settings" if is_in_vain else ""
    assert learnt_before(settings, database, "the same", fully=False) == told
    assert learnt_before(settings, database, "something new", fully=False) == ""


def test_other_data_or_other_ways_to_learn_are_not_the_same() -> None:
    plain = training_key(Settings(), "data")
    assert training_key(Settings(port=9000, min_accuracy=0.5), "data") == plain
    keys = {training_key(Settings(epochs=epochs, seed=seed), "data") for epochs in (None, 3) for seed in (13, 14)}
    assert len(keys | {plain, training_key(Settings(), "other data")}) == 5


@pytest.mark.parametrize(
    ("in_vain", "pause_h"), [(1, 1), (2, 2), (3, 4), (4, 8), (8, 128), (9, 24 * 7), (10, 24 * 7), (1_100, 24 * 7)]
)
def test_the_pause_after_retrainings_in_vain_doubles_up_to_a_week(
    database: Database, in_vain: int, pause_h: int
) -> None:
    _ended(database, jobs.REJECTED, jobs.FAILED, jobs.SUCCEEDED, hours_ago=pause_h - 0.1)
    states = [jobs.FAILED if number % 2 else jobs.REJECTED for number in range(in_vain)]
    _ended(database, *states, hours_ago=pause_h - 0.1)
    assert _too_early(Settings(), database).startswith(f"the last {'one' if in_vain == 1 else in_vain} did not succeed")
    with database.transaction() as session:
        for job in session.scalars(select(Job)):
            assert job.ended_at is not None
            job.ended_at -= timedelta(hours=0.2)
    assert _too_early(Settings(), database) == ""


def test_other_settings_end_the_pause_and_let_a_rejected_version_try_again(
    database: Database, settings: Settings
) -> None:
    job_id = _ended(database, jobs.REJECTED, fingerprint="the same")
    with database.transaction() as session:
        session.get_one(Job, job_id).result = {CIRCUMSTANCES: circumstances(settings)}
    lenient = settings.model_copy(update={"min_accuracy": 0.5})
    assert _too_early(settings, database)
    assert learnt_before(settings, database, "the same", fully=False)
    assert not _too_early(lenient, database)
    assert not learnt_before(lenient, database, "the same", fully=False)


def test_the_pause_does_not_outlast_a_clock_that_was_set_back(database: Database) -> None:
    _ended(database, jobs.REJECTED, hours_ago=-24)
    assert _too_early(Settings(), database) == ""


def test_nothing_waits_after_a_success_or_without_a_verdict(database: Database) -> None:
    assert _too_early(Settings(), database) == ""
    _ended(database, jobs.CANCELLED, jobs.SKIPPED)
    assert _too_early(Settings(), database) == ""
    _ended(database, jobs.REJECTED, jobs.REJECTED, jobs.SUCCEEDED)
    assert _too_early(Settings(), database) == ""


class Served:
    """A model that answers the texts of the files rightly, or all of them alike."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wrong: Collection[str] = ()) -> None:
        self.wrong = wrong
        """Texts of which it never tells the right label."""
        self.is_right = False
        self.version = 1
        monkeypatch.setattr(check_module, "batch_predict", self._ask)

    def _ask(self, _address: str, texts: list[str]) -> Answers:
        labels = [LABELS[(int(text.split()[-1]) + (text in self.wrong)) % 2 if self.is_right else 0] for text in texts]
        confidence = np.full(len(texts), 0.9, np.float32)
        probabilities = [(0.9, 0.1) if label == LABELS[0] else (0.1, 0.9) for label in labels]
        return Answers(self.version, labels, confidence, np.array(probabilities, np.float32))


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
    assert first.result["decision"] == f"A retraining was requested: job {asked.id}."
    assert _check(settings, database).result["decision"] == first.result["decision"]
    jobs.begin(database, asked.id)
    assert _check(settings, database).result["decision"] == f"A retraining is running already: job {asked.id}."
    assert [event.kind for event in events.newest(database, 10)] == ["checked", "checked", "stale", "checked"]
    told = events.newest(database, 1)[0].message
    sentence, figures = told.splitlines()
    assert sentence == (
        f"Version 1 is under a threshold: {'; '.join(first.result['problems'])}; too few live texts to estimate how it "
        "does on them."
    )
    assert figures.startswith("Figures: validation accuracy 0.5000, ")
    (mail,) = events.due_mails(database)
    assert sentence in mail.body
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
    merged = merge(settings, database, load_dataset(settings))
    jobs.set_fingerprint(database, asked.id, training_key(settings, merged.fingerprint))
    jobs.begin(database, asked.id)
    with database.transaction() as session:
        jobs.end(session, asked.id, jobs.Outcome(jobs.REJECTED, {}))
    decisions = [_check(settings, database).result["decision"]]
    add_feedback(database, [LabelledText(f"new text {number}", LABELS[number % 2]) for number in range(9)], "admin")
    decisions.append(_check(settings, database).result["decision"])
    assert jobs.waiting(database, jobs.RETRAIN) is None
    with database.transaction() as session:
        ended = session.get_one(Job, asked.id)
        assert ended.ended_at is not None
        ended.ended_at -= timedelta(hours=1)
    decisions.append(_check(settings, database).result["decision"])
    assert [decision.partition(";")[0].rstrip(".") for decision in decisions] == [
        f"No retraining: job {asked.id} (rejected) trained on the same data with the same settings",
        "No retraining: the last one did not succeed",
        f"A retraining was requested: job {jobs.enqueue(database, jobs.RETRAIN, '').id}",
    ]


def test_a_version_that_was_never_good_is_not_said_to_have_become_stale(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served(monkeypatch)
    _check(settings, database)
    (event,) = events.newest(database, 10, "stale")
    assert event.message.startswith("Version 1 is under a threshold: accuracy on validation is 0.5000, under 0.8")
    served.is_right = True
    _check(settings, database)
    served.is_right = False
    _check(settings, database)
    assert events.newest(database, 10, "stale")[0].message.startswith("Version 1 has become stale: accuracy")


def test_random_labels_that_decide_make_a_version_stale_or_say_that_it_is_not(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Served(monkeypatch).is_right = True
    texts = unlike(DRAWN)
    asked(database, texts, positive=0.9)
    for label, is_stale in (("Positive", False), ("Negative", True)):
        label_draws.begin_series(database, 1, newest_sample(database, DRAWN, version=1))
        add_feedback(database, [LabelledText(text, label) for text in texts], "console:anna")
        result = _check(settings, database).result
        assert result["labelled"]["under"] == result["stale"] == is_stale
        if not is_stale:
            assert "by random labels: 100 % (100 to 100) after 200 labels; decided: it is not" in result["summary"]
    problem = "accuracy on live texts by random labels is 0 % (0 to 0) after 200 labels, below 0.8"
    assert problem in result["problems"]
    assert problem in events.newest(database, 1, "stale")[0].message
    job = jobs.waiting(database, jobs.RETRAIN)
    assert job is not None
    assert problem in job.reason


def test_the_first_training_counts_as_learnt(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, bert_bundle: Path
) -> None:
    repository = ModelRepository(settings.model_repository)
    version = shutil.copytree(bert_bundle, repository.version_directory(1))
    repository.deploy(1)
    data = load_dataset(settings)
    replace(Bundle.load(version), training_key=training_key(settings, data.fingerprint)).save(version)
    Served(monkeypatch)
    told = "No retraining: version 1 was trained on the same data with the same settings."
    assert _check(settings, database).result["decision"] == told
    add_feedback(database, [LabelledText(f"new text {number}", LABELS[number % 2]) for number in range(9)], "admin")
    assert _check(settings, database).result["decision"].startswith("A retraining was requested: job")


def test_a_cancelled_retraining_is_not_begun_again_by_the_next_check(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Served(monkeypatch)
    _check(settings, database)
    asked = jobs.waiting(database, jobs.RETRAIN)
    assert asked is not None
    jobs.request_cancel(database, asked.id)
    assert _check(settings, database).result["decision"] == (
        f"No retraining: job {asked.id}, with the same data and settings, was cancelled; `python app.py retrain` "
        "begins it anyway."
    )
    assert jobs.waiting(database, jobs.RETRAIN) is None
    add_feedback(database, [LabelledText(f"new text {number}", LABELS[number % 2]) for number in range(9)], "admin")
    assert _check(settings, database).result["decision"].startswith("A retraining was requested: job")


def _sample(database: Database, confidence: float, texts: int, version: int = 1, words: int = 3) -> None:
    """Live texts, of each label as many, all answered with the same confidence."""
    probabilities = [
        np.array(pair, "<f4").tobytes() for pair in ((confidence, 1 - confidence), (1 - confidence, confidence))
    ]
    answered = [
        AnsweredText("word " * words, LABELS[number % 2], probabilities[number % 2], version, False, time.monotonic())
        for number in range(texts)
    ]
    add_sample(database, answered, keeps_texts=False)


def test_live_texts_are_estimated_and_what_seems_bad_is_told_once(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, bert_bundle: Path, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"model_repository": tmp_path / "triton_repo"})
    shutil.copytree(bert_bundle, ModelRepository(settings.model_repository).version_directory(1))
    # So that the model, which gives its labels 0.9, is right as often as it says.
    wrong = {f"val text {number}" for number in (0, 11)}
    served = Served(monkeypatch, wrong)
    served.is_right = True
    _sample(database, 0.9, LEAST_TEXTS - 1)
    _sample(database, 0.5, 500, version=2)
    assert "live" not in _check(settings, database).result
    _sample(database, 0.9, 500)
    live = _check(settings, database).result["live"]
    value, low, high = live["parts"]["all"]["accuracy"]
    assert live["parts"]["all"]["texts"] == 500 + LEAST_TEXTS - 1
    assert low < value < high
    assert value == pytest.approx(0.9, abs=0.01)
    assert live["problems"] == []
    told = events.newest(database, 1)[0].message
    assert f"estimated accuracy {value:.4f} ({low:.4f} to {high:.4f}) on 549 live texts" in told

    _sample(database, 0.55, 2_000)
    first, again = _check(settings, database), _check(settings, database)
    assert first.result["live"]["problems"][0].startswith("estimated accuracy on 2,000 live texts is 0.5")
    assert not first.result["stale"]
    assert again.result["live"]["problems"]
    (event,) = events.newest(database, 10, "estimated-low")
    assert event.message.startswith(
        "Version 1 is probably worse than required on live texts: estimated accuracy on 2,000 live texts"
    )
    assert [mail.event_id for mail in events.due_mails(database)] == [event.id]


def test_short_and_long_live_texts_are_estimated_apart(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, bert_bundle: Path, tmp_path: Path
) -> None:
    settings = settings.model_copy(update={"model_repository": tmp_path / "triton_repo"})
    shutil.copytree(bert_bundle, ModelRepository(settings.model_repository).version_directory(1))
    Served(monkeypatch, {"val text 0", "val text 11"}).is_right = True
    _sample(database, 0.95, 100, words=1)
    _sample(database, 0.6, 100, words=30)
    parts = _check(settings, database).result["live"]["parts"]
    assert {name: part["texts"] for name, part in parts.items()} == {"all": 200, "short texts": 100, "long texts": 100}
    assert parts["short texts"]["accuracy"][0] > 0.9
    assert parts["long texts"]["accuracy"][0] < 0.7


def _live(database: Database, texts: Sequence[str], labels: Sequence[str] = LABELS) -> None:
    """So many live texts, with labels in turns."""
    answered = [
        AnsweredText(
            text, labels[number % len(labels)], np.array([0.1, 0.9], "<f4").tobytes(), 1, False, time.monotonic()
        )
        for number, text in enumerate(texts)
    ]
    add_sample(database, answered, keeps_texts=True)


@pytest.mark.parametrize("retrain", [False, True])
def test_drift_is_told_once_and_asks_for_a_retraining_where_it_is_to(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, retrain: bool
) -> None:
    settings = settings.model_copy(update={"retrain_on_drift": retrain})
    served = Served(monkeypatch)
    served.is_right = True
    known = [f"{'val' if number % 2 else 'train'} text {number}" for number in range(60)]
    _live(database, known)
    quiet = _check(settings, database).result
    assert [kind for kind, item in quiet["drift"].items() if item["alarm"]] == []
    assert {"texts", "labels", "lengths"} == quiet["drift"].keys()

    with database.transaction() as session:
        session.execute(delete(SampledPrediction))
    _live(database, [f"somebody wrote a long tweet, and it is the number {number}" for number in range(60)], LABELS[:1])
    first, again = _check(settings, database).result, _check(settings, database).result
    assert {kind for kind, item in first["drift"].items() if item["alarm"]} == {"texts", "labels", "lengths"}
    assert "tweet" in first["drift"]["texts"]["live_words"]
    assert again["drift"] == first["drift"]
    assert not first["stale"]
    (event,) = events.newest(database, 10, "drift")
    assert event.message.startswith("Drift of texts, labels, lengths, while version 1 is deployed.\nlive texts differ")
    assert "100.0% of live texts are predicted as Negative, and 50.0% of known ones" in event.message
    assert event.id in [mail.event_id for mail in events.due_mails(database)]
    asked = jobs.waiting(database, jobs.RETRAIN)
    assert (asked is not None) is retrain
    assert first.get("decision") == (f"A retraining was requested: job {asked.id}." if asked else None)
    # Another version starts anew.
    served.version = 2
    _check(settings, database)
    assert len(events.newest(database, 10, "drift")) == 1


def test_texts_that_are_not_kept_leave_labels_and_lengths_to_look_at(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Served(monkeypatch).is_right = True
    _live(database, [f"train text {number} and more" for number in range(60)])
    with database.transaction() as session:
        session.execute(update(SampledPrediction).values(text=None))
    assert _check(settings, database).result["drift"].keys() == {"labels", "lengths"}


def test_feedback_that_has_turned_is_noticed(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Served(monkeypatch).is_right = True
    told = [f"told text {number}" for number in range(1_000)]
    add_feedback(database, [LabelledText(text, LABELS[int(text.split()[-1]) % 2]) for text in told], "admin")
    assert _check(settings, database).result["drift"]["feedback"]["alarm"] == ""
    turned = [f"turned text {number}" for number in range(300)]
    add_feedback(database, [LabelledText(text, LABELS[(int(text.split()[-1]) + 1) % 2]) for text in turned], "admin")
    assert "texts of feedback are wrong" in _check(settings, database).result["drift"]["feedback"]["alarm"]
