"""A retraining whose database goes away, in a process of its own, as the scheduler and a command run it."""

from argparse import Namespace
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError

import lifecycle.jobs.retrain
from common.settings import Settings
from lifecycle.cli.commands import run_waiting_job
from lifecycle.jobs import job_process
from storage import jobs
from storage.database import Database
from storage.tables import Job
from tests.commands import run_in_fork
from tests.storage.conftest import database_away

pytestmark = pytest.mark.full


def run_retraining(settings: Settings, job_id: int, as_command: bool) -> None:
    """Run the job in this process, which may end with it; its database goes away for a moment between two steps."""

    def retrain(_settings: Settings, _database: Database, _job: Job, step: lifecycle.jobs.retrain.Step) -> jobs.Outcome:
        step("training")
        with database_away(settings.database):
            step("proving version 2")
        return jobs.Outcome(jobs.SUCCEEDED, {})

    pytest.MonkeyPatch().setattr(lifecycle.jobs.retrain, "retrain", retrain)
    if as_command:
        with pytest.raises(OperationalError):
            job_process.run_job(settings, Database(settings.database), job_id)
    else:
        run_waiting_job(settings, Namespace(job=job_id))


def test_a_database_that_goes_away_fails_no_retraining(tmp_path: Path, postgres_url: str) -> None:
    """It still counts as running, so that the scheduler resumes it. A command's job, which nobody resumes, fails."""
    settings = Settings(state_dir=tmp_path, database_url=SecretStr(postgres_url))
    with closing(Database(postgres_url)) as database:

        def job() -> Job:
            found = jobs.get(database, queued.id)
            assert found is not None
            return found

        queued = jobs.enqueue(database, jobs.RETRAIN, "by the test")
        assert run_in_fork(run_retraining, settings, queued.id, False) == job_process.LEASE_LOST
        assert (job().state, job().step) == (jobs.RUNNING, "training")
        # A command that nobody resumes fails instead, and the next one can begin.
        assert [lost.id for lost in jobs.lost(database)] == [queued.id]
        with database.transaction() as session:
            jobs.requeue(session, queued.id)
        assert run_in_fork(run_retraining, settings, queued.id, True) == 0
        assert job().state == jobs.FAILED
