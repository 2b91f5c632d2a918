"""A job that is to be cancelled is, whatever the look for that raises, but not while it promotes."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lifecycle.jobs.retrain
from common.errors import PipelineError
from common.progress import StatusLine, report
from common.settings import Settings
from lifecycle.jobs import job_process
from lifecycle.jobs.circumstances import other_circumstances, other_settings
from storage import jobs
from storage.database import Database
from storage.tables import Job


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN], ids=["usual", "in the background"])
def test_cancelling_works_after_a_look_that_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: signal.Handlers
) -> None:
    """Also during a wait, and in a pipeline that a shell script has started in the background."""
    signal.signal(signal.SIGINT, handler)
    monkeypatch.setattr("common.periodic._FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(job_process, "_CANCEL_POLL_S", 0.01)
    database = Database(Settings(state_dir=tmp_path).database)
    asked: list[int] = []

    def is_cancel_requested(_database: Database, job_id: int) -> bool:
        asked.append(job_id)
        if len(asked) < 3:
            raise KeyError("nobody expected this")
        return True

    monkeypatch.setattr(jobs, "is_cancel_requested", is_cancel_requested)
    with pytest.raises(KeyboardInterrupt), job_process._cancellable(database, 17):
        time.sleep(60)
    assert asked == [17, 17, 17]
    database.close()


def run_retraining(
    directory: Path, monkeypatch: pytest.MonkeyPatch, retrain: Callable[[Database, Job, Callable[..., None]], None]
) -> Job:
    """Run a retraining that only calls `retrain`; return the ended job."""
    monkeypatch.setattr(job_process, "_CANCEL_POLL_S", 0.01)
    settings = Settings(state_dir=directory)
    database = Database(settings.database)

    def run(_settings: Settings, database: Database, job: Job, step: Callable[..., None]) -> jobs.Outcome:
        retrain(database, job, step)
        return jobs.Outcome(jobs.SUCCEEDED, {"version": 2})

    monkeypatch.setattr(lifecycle.jobs.retrain, "retrain", run)
    ended = job_process.run_job(settings, database, jobs.enqueue(database, jobs.RETRAIN, "by the test").id)
    database.close()
    return ended


def test_a_retraining_in_vain_keeps_what_it_depended_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def retrain(*_: object) -> None:
        raise PipelineError("the base model cannot be loaded")

    ended = run_retraining(tmp_path, monkeypatch, retrain)
    assert ended.state == jobs.FAILED
    assert not other_circumstances(Settings(state_dir=tmp_path), ended)
    assert other_settings(Settings(state_dir=tmp_path, base_model="another"), ended)


def test_a_job_that_promotes_finishes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As API and console say: it is not interrupted, and what it has promoted is no cancelled job."""

    def retrain(database: Database, job: Job, step: Callable[..., None]) -> None:
        step("training")
        step("promoting version 2", can_cancel=False)
        jobs.request_cancel(database, job.id)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            time.sleep(0.01)

    assert run_retraining(tmp_path, monkeypatch, retrain).state == jobs.SUCCEEDED


def test_a_job_that_was_cancelled_before_promotes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted: list[int] = []

    def retrain(database: Database, job: Job, step: Callable[..., None]) -> None:
        monkeypatch.setattr(job_process, "_CANCEL_POLL_S", 60.0)
        step("training")
        jobs.request_cancel(database, job.id)
        step("promoting version 2", can_cancel=False)
        promoted.append(2)

    assert run_retraining(tmp_path, monkeypatch, retrain).state == jobs.CANCELLED
    assert promoted == []


def test_the_step_of_a_job_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def retrain(database: Database, job: Job, step: Callable[..., None]) -> None:
        def note() -> None:
            found = jobs.get(database, job.id)
            assert found is not None
            steps.append(found.step)

        step("training")
        report("downloading part 1 of 5")
        note()
        monkeypatch.setattr(job_process, "_PROGRESS_S", 0.0)
        StatusLine().show("step 38 of 734  12 min 05 s left")
        note()

    run_retraining(tmp_path, monkeypatch, retrain)
    assert steps == ["training: downloading part 1 of 5", "training: step 38 of 734, 12 min 05 s left"]
