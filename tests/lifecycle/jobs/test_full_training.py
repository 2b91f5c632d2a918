"""A quick first version is replaced by the full training, which is requested once, and again after a failed one."""

from pathlib import Path

import pytest
from sqlalchemy import update

from common.settings import Settings
from lifecycle.deployment.promotion import reconcile
from lifecycle.deployment.speed import why_slower
from lifecycle.jobs.check import learnt_before
from lifecycle.jobs.circumstances import CIRCUMSTANCES, circumstances
from lifecycle.jobs.full_training import reason_for_full_training, request_full_training
from serving.model_repo.repository import ModelRepository
from storage import jobs
from storage.database import Database
from storage.tables import Job
from storage.versions import GateVerdict, add_verdicts, add_version
from tests.lifecycle.conftest import hollow_bundle, publish_as


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(state_dir=tmp_path / "state", model_repository=tmp_path / "triton_repo")
    settings.state_dir.mkdir()
    repository = ModelRepository(settings.model_repository)
    publish_as(repository, hollow_bundle(tmp_path), 1, quick=True, base_model="small")
    repository.deploy(1)
    return settings


def states(database: Database) -> list[str]:
    with database.reading() as session:
        return [job.state for job in session.query(Job).order_by(Job.id)]


def end_last(database: Database, state: jobs.State, **result: object) -> None:
    with database.transaction() as session:
        last = session.query(Job).order_by(Job.id.desc()).first()
        assert last is not None
        session.execute(update(Job).where(Job.id == last.id).values(state=state, result=result, fingerprint="same"))


def test_it_is_requested_once_and_again_at_a_start_after_a_failed_one(settings: Settings) -> None:
    database = Database(settings.database)
    try:
        reconcile(settings, database)
        request_full_training(settings, database)
        request_full_training(settings, database)
        assert states(database) == ["queued"]
        end_last(database, jobs.FAILED)
        request_full_training(settings, database)
        assert states(database) == ["failed", "queued"]
        end_last(database, jobs.CANCELLED)
        request_full_training(settings, database)
        assert states(database) == ["failed", "cancelled"], "somebody wants the quick one"
    finally:
        database.close()


def test_a_rejected_one_is_requested_again_when_settings_or_data_have_changed(
    settings: Settings, tmp_path: Path
) -> None:
    data = tmp_path / "train.csv"
    data.write_text("text,label\n")
    settings = settings.model_copy(update={"train_data": data})
    database = Database(settings.database)
    try:
        reconcile(settings, database)
        request_full_training(settings, database)
        end_last(database, jobs.REJECTED, **{CIRCUMSTANCES: circumstances(settings)})
        request_full_training(settings, database)
        assert states(database) == ["rejected"]
        request_full_training(settings.model_copy(update={"base_model": "another"}), database)
        assert states(database) == ["rejected", "queued"]
        # The job finds that it would learn the same.
        end_last(database, jobs.SKIPPED, **{CIRCUMSTANCES: circumstances(settings)})
        request_full_training(settings, database)
        assert states(database) == ["rejected", "skipped"]
        data.write_text("text,label\nfine,good\n")
        request_full_training(settings, database)
        assert states(database) == ["rejected", "skipped", "queued"]
    finally:
        database.close()


def test_a_job_whose_version_is_gone_is_no_reason_against_it(settings: Settings) -> None:
    database = Database(settings.database)
    try:
        jobs.enqueue(database, jobs.RETRAIN, "with an earlier model repository")
        end_last(database, jobs.SUCCEEDED, version=7)
        assert learnt_before(settings, database, "same", fully=False) == ""
        reconcile(settings, database)
        request_full_training(settings, database)
        assert states(database) == ["succeeded", "queued"]
        end_last(database, jobs.SUCCEEDED, version=1)
        assert learnt_before(settings, database, "same", fully=False).startswith(
            "job 2 (succeeded) trained on the same data"
        )
    finally:
        database.close()


def test_no_other_version_asks_for_it(settings: Settings, tmp_path: Path) -> None:
    repository = ModelRepository(settings.model_repository)
    assert reason_for_full_training(settings).startswith("version 1 is a quick first version; ")
    publish_as(repository, tmp_path / "bundle", 2)
    repository.deploy(2)
    assert reason_for_full_training(settings) == ""


@pytest.mark.parametrize(("base_model", "is_slow"), [("small", True), ("large", False)])
def test_what_another_encoder_costs_is_no_fault(
    settings: Settings, tmp_path: Path, base_model: str, is_slow: bool
) -> None:
    repository = ModelRepository(settings.model_repository)
    bundle = publish_as(repository, tmp_path / "bundle", 2, base_model=base_model)
    database = Database(settings.database)
    try:
        with database.transaction() as session:
            add_version(session, bundle)
        item = {"champion": 5.0, "candidate": 40.0, "ratio": 8.0, "slack": 2.0, "at most": 2.0}
        measured = [
            GateVerdict("trial", True, "", {"champion": 1}),
            GateVerdict("budget", True, "", {"ms for a lone text": item}),
        ]
        add_verdicts(database, 2, measured)
        assert bool(why_slower(settings, database, 2, 1, largest=2.0)) == is_slow
    finally:
        database.close()
