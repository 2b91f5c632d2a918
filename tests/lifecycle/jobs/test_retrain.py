"""A whole retraining: what it learns, what is rejected, and what is left when it is killed."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.deployment.version_report import describe_models
from lifecycle.gates.run_gates import run_gates
from lifecycle.jobs.check import learnt_before
from lifecycle.jobs.job_process import run_job
from serving.model_repo.repository import ModelRepository
from storage import deployments, events, jobs, leases, releases
from storage.database import Database
from storage.feedback import LabelledText, add_feedback
from storage.sampled_predictions import AnsweredText, add_sample
from storage.versions import GateVerdict
from storage.withdrawal import withdraw_row
from tests.e2e.conftest import PROJECT
from tests.lifecycle.conftest import Served, make_served, serving
from tests.lifecycle.deployment.test_promotion import Load, kill
from tests.lifecycle.learning import labelled, learning_settings, write_data, write_rows
from trainer.dataset import load_dataset
from trainer.record import TrainingRecord
from trainer.tracking import Tracking

pytestmark = pytest.mark.full

PAUSE_S = 0.2
"""Of callers beside a training, so that they leave it a processor."""
KILL_POINTS = [
    ("lifecycle.gates.training_data", "write", "after"),
    ("trainer.resumable_trainer", "ResumableTrainer._save_checkpoint", "after"),
    ("trainer.tracking", "Tracking.register", "after"),
    ("trainer.train", "replace_directory", "before"),
    ("serving.model_repo.repository", "ModelRepository.publish", "before"),
    ("serving.model_repo.repository", "ModelRepository.publish", "after"),
    ("lifecycle.gates.run_gates", "within_budget", "before"),
    ("lifecycle.jobs.retrain", "add_verdicts", "after"),
    ("serving.model_repo.repository", "ModelRepository.deploy", "after"),
    ("storage.deployments", "finish", "before"),
    ("lifecycle.jobs.mlflow_alias", "set_alias", "before"),
]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose first version has been learnt and deployed by the commands."""
    directory = tmp_path_factory.mktemp("learnt")
    write_data(directory)
    served = make_served(directory, directory, versions=0, **learning_settings(directory))
    for command in ("train", "export"):
        ended = served.app(command)
        assert ended.returncode == 0, ended.stderr
    return directory


@pytest.fixture
def served(learnt: Path, tmp_path: Path) -> Served:
    """A copy of it."""
    directory = tmp_path / "served"
    shutil.copytree(learnt, directory)
    # Paths of the copied MLflow store lead to the first directory, where they are only read. So does the encoder's.
    return make_served(directory, directory, versions=0, **learning_settings(learnt))


@pytest.fixture
def database(served: Served) -> Iterator[Database]:
    opened = served.database()
    yield opened
    opened.close()


OTHER = {"Positive": "Negative", "Negative": "Positive"}


def key_of(database: Database, job_id: int) -> str:
    job = jobs.get(database, job_id)
    assert job is not None
    return job.fingerprint


def tell(database: Database, count: int = 60) -> None:
    add_feedback(database, [LabelledText(*row) for row in labelled(count, seed=2)], "admin")


def test_the_list_of_suspicious_labels_may_name_no_feedback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = labelled(200, seed=1)
    write_rows(tmp_path / "train.csv", rows[:150])
    write_rows(tmp_path / "val.csv", rows[150:])
    settings = Settings(
        train_data=tmp_path / "train.csv",
        val_data=tmp_path / "val.csv",
        state_dir=tmp_path / "state",
        model_repository=tmp_path / "triton_repo",
    )
    given: list[Collection[tuple[str, str]]] = []

    def training(own: Settings, _: object, own_rows: Collection[tuple[str, str]], **__: object) -> None:
        given.extend([own_rows, list(load_dataset(own).train.pairs())])
        raise PipelineError("this is enough")

    monkeypatch.setattr("lifecycle.jobs.retrain.train", training)
    monkeypatch.setattr(ModelRepository, "require_deployed", lambda _: 1)
    with closing(Database(settings.database)) as database:
        tell(database)
        add_feedback(database, [LabelledText(text, OTHER[label]) for text, label in rows[:20]], "admin")
        ended = run_job(settings, database, jobs.enqueue(database, jobs.RETRAIN, "by the test").id)
    assert ended.error == "this is enough"
    listed, learnt = given
    assert set(listed) == {*rows}
    feedback = set(learnt) - set(listed)
    assert len(feedback) > 30
    assert {text for text, _ in feedback} & {text for text, _ in rows[:20]}, "feedback replaces labels of the file"


def test_what_was_told_is_learnt_and_serves_and_is_not_learnt_twice(served: Served, database: Database) -> None:
    tell(database)
    with serving(served), Load(served.url, callers=4, pause_s=PAUSE_S) as load:
        job = served.ask("POST", "/retrain").json()
        assert served.ask("POST", "/retrain").json()["id"] == job["id"]
        ended = served.app("retrain", timeout_s=300)
        assert ended.returncode == 0, ended.stderr + served.log
        assert "Version 2 passed every gate and is deployed." in ended.stdout
        assert "Version 1 is updated with" in ended.stderr + served.log
        assert served.version() == 2
        assert served.ask("GET", f"/jobs/{job['id']}").json()["state"] == "succeeded"
        model, first = served.ask("GET", "/models").json()
        assert model["data"] == first["data"] != {}, "both were made from the same files; feedback is counted apart"
        assert [gate["gate"] for gate in model["gates"] if gate["passed"]] == [
            "trial",
            "parity",
            "thresholds",
            "comparison",
            "slices",
            "flips",
            "behaviour",
            "budget",
        ]
        again = served.app("retrain")
        assert f"No retraining: job {job['id']} (succeeded) trained on the same data" in again.stdout + again.stderr
        key = key_of(database, job["id"])
        assert not learnt_before(served.settings, database, key, fully=True), "a full training may be better"
        check = served.check()
        assert check["result"]["version"] == 2
        assert check["result"]["feedback"]["texts"] > 5
    assert set(load.statuses) == {200}
    assert Tracking(served.settings).aliased() == {2}
    assert (served.directory / "model" / "training.json").read_text().count('"version": 2')


def test_what_passed_begins_as_a_canary_where_that_is_wanted(served: Served, database: Database) -> None:
    tell(database)
    careful = replace(served, environment={**served.environment, "SENTIMENT_RELEASE": "canary"})
    ended = careful.app("retrain", timeout_s=300)
    assert "Version 2 passed every gate; its canary has started." in ended.stdout, ended.stderr
    assert served.repository.deployed() == 1
    with database.reading() as session:
        release = releases.running(session)
    assert release is not None
    assert (release.version, release.champion, release.mode) == (2, 1, "canary")
    assert "passed every gate" in release.reason
    assert Tracking(served.settings).aliased() == {1}


def test_a_full_training_follows_an_update_that_the_gates_reject(
    served: Served, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tell(database)
    tested: list[int] = []

    def reject_the_first(*arguments: Any) -> list[GateVerdict]:
        tested.append(arguments[4])
        if len(tested) == 1:  # no data make the gates reject an update and accept the full training on every processor
            return [GateVerdict("comparison", False, "it is worse", {})]
        return run_gates(*arguments)

    monkeypatch.setattr("lifecycle.jobs.retrain.run_gates", reject_the_first)
    with caplog.at_level("INFO"):
        ended = run_job(served.settings, database, jobs.enqueue(database, jobs.RETRAIN, "by the test").id)
    assert (ended.state, ended.result["version"]) == ("succeeded", 3), ended.error
    assert tested == [2, 3]
    assert events.newest(database, 1, "candidate-rejected") == []
    (event,) = events.newest(database, 1, "update-rejected")
    assert event.id not in {mail.event_id for mail in events.due_mails(database)}
    assert event.message.startswith(
        "Version 2 was rejected by comparison; version 1 stays deployed. A full training follows this update.\n"
    )
    assert [line.split(" with ")[0] for line in caplog.messages if "is updated" in line] == ["Version 1 is updated"]
    assert TrainingRecord.load(served.settings.model_dir).updates == 0
    models = describe_models(served.settings, database)
    assert [(model["version"], model["updates"]) for model in models] == [(3, 0), (2, 1), (1, 0)]
    assert run_job(served.settings, database, jobs.enqueue(database, jobs.RETRAIN, "again").id).state == "skipped"

    begun_from: list[Path | None] = []
    learnt_from: list[int] = []
    live = [AnsweredText(f"live {n}", "Positive", b"\0" * 8, 3, False, time.monotonic()) for n in range(20)]
    add_sample(database, live, keeps_texts=True)

    def training(own: Settings, *_: object, deployed: Path | None, unlabelled: list[str]) -> TrainingRecord:
        begun_from.append(deployed)
        learnt_from.append(len(unlabelled))
        shutil.copytree(served.settings.model_dir, own.model_dir)
        return replace(TrainingRecord.load(own.model_dir), version=99)

    def exporting(_: Settings, unlabelled: list[str]) -> None:
        learnt_from.append(len(unlabelled))
        raise PipelineError("this is enough")

    monkeypatch.setattr("lifecycle.jobs.retrain.train", training)
    monkeypatch.setattr("lifecycle.jobs.retrain.export", exporting)
    tell(database, count=80)
    learning = served.settings.model_copy(update={"learn_from_live": True})
    run_job(learning, database, jobs.enqueue(database, jobs.RETRAIN, "new texts").id)
    withdraw_row(database, 1, erase=False, reason="by the test")
    run_job(served.settings, database, jobs.enqueue(database, jobs.RETRAIN, "fewer texts").id)
    assert begun_from == [served.settings.model_dir, None]
    assert 0 < learnt_from[0] < 20, "without what would be held out"
    assert learnt_from[1:] == [learnt_from[0], 0, 0], "by the training and its first stage"
    assert "This is a full training, because feedback that it may have learnt was withdrawn." in caplog.text


def test_shuffled_labels_are_rejected_and_the_champion_serves(served: Served, database: Database) -> None:
    rows = labelled(640, seed=1)
    labels = [label for _, label in rows]
    write_rows(
        served.directory / "train.csv",
        [(text, label) for (text, _), label in zip(rows, labels[7:] + labels[:7], strict=True)],
    )
    ended = served.app("retrain", timeout_s=300)
    assert "Version 2 was rejected by thresholds, comparison, slices" in ended.stdout, ended.stdout + ended.stderr
    assert served.repository.deployed() == 1
    (event,) = events.newest(database, 1, "candidate-rejected")
    assert event.figures["thresholds"]["validation"]["accuracy"] < 0.8
    assert len(events.due_mails(database)) == 2  # that it began, and that it was rejected


def test_a_better_candidate_is_promoted_though_both_versions_miss_the_thresholds(tmp_path: Path) -> None:
    write_data(tmp_path)
    rows = labelled(840, seed=1)
    train, val = rows[:640], rows[640:]
    # A third of the validation labels is wrong, so that no model reaches 0.8, and at first nearly half of the others.
    write_rows(tmp_path / "val.csv", with_wrong_labels(val, 0.3))
    write_rows(tmp_path / "train.csv", with_wrong_labels(train, 0.45))
    served = make_served(tmp_path, tmp_path, versions=0, **learning_settings(tmp_path))
    trained, exported = served.app("train"), served.app("export")
    assert "The model misses a threshold of the checks: accuracy on validation is 0." in trained.stderr
    assert "Version 1 is under a threshold: accuracy on validation is 0." in exported.stderr
    same = served.app("retrain")
    assert "No retraining: version 1 was trained on the same data with the same settings." in same.stdout, same.stderr
    write_rows(tmp_path / "train.csv", train)
    ended = served.app("retrain", timeout_s=600)
    assert "Version 2 passed every gate and is deployed." in ended.stdout, ended.stdout + ended.stderr
    assert "Version 1 misses it as well, and the candidate is better: over all texts, accuracy 0." in ended.stderr
    database = served.database()
    (promoted,) = events.newest(database, 1, "promoted")
    database.close()
    assert "passed every gate. It is under a threshold, but better than version 1: accuracy on" in promoted.message


def with_wrong_labels(rows: list[tuple[str, str]], share: float) -> list[tuple[str, str]]:
    draw = random.Random(0)
    other = {"Positive": "Negative", "Negative": "Positive"}
    return [(text, other[label] if draw.random() < share else label) for text, label in rows]


def test_a_retraining_that_is_killed_anywhere_goes_on(served: Served, database: Database) -> None:
    tell(database)
    # So that nobody but this test goes on with it.
    assert leases.take(database, leases.SCHEDULER, leases.new_holder(), 3_600)
    with serving(served), Load(served.url, callers=2, pause_s=PAUSE_S) as load:
        job = jobs.enqueue(database, jobs.RETRAIN, "by test")
        for point in KILL_POINTS:
            kill(served, point, "job", str(job.id))
            assert [lost.id for lost in jobs.lost(database)] == [job.id], point
            assert served.version() in (1, served.repository.deployed())
            with database.transaction() as session:
                jobs.requeue(session, job.id)
        ended = served.app("job", str(job.id), timeout_s=300)
        assert ended.returncode == 0, ended.stderr
        done = jobs.get(database, job.id)
        assert done is not None
        assert done.state == "succeeded", done.error
        late = served.app("job", str(job.id))
        assert (late.returncode, "error" in late.stderr) == (0, False), "to come second is no failure"
        assert f"Job {job.id} cannot start: it is not queued" in late.stderr
        version = done.result["version"]
        assert served.repository.published() == {1, version}, "nothing was trained once more"
        with database.reading() as session:
            known = deployments.serving(session)
            assert known is not None
            assert known.version == served.repository.deployed() == served.version() == version
            assert deployments.intended(session) == []
        assert Tracking(served.settings).aliased() == {version}
    assert set(load.statuses) == {200}
    assert not [path for path in served.repository.model.iterdir() if path.name.startswith(".")]


def test_a_running_retraining_is_cancelled(served: Served, database: Database) -> None:
    tell(database)
    job = jobs.enqueue(database, jobs.RETRAIN, "by test")
    process = subprocess.Popen(
        [sys.executable, str(PROJECT / "app.py"), "job", str(job.id)],
        cwd=served.directory,
        env=dict(served.environment),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Fine-tuning" in line:
            break
    assert "is being cancelled" in served.app("cancel", str(job.id)).stdout
    process.communicate(timeout=60)
    ended = jobs.get(database, job.id)
    assert ended is not None
    assert ended.state == "cancelled"
    assert leases.holder_of(database, jobs.RETRAIN) is None
    assert served.repository.deployed() == 1
