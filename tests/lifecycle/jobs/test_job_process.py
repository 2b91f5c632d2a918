"""A job that is to be cancelled is, whatever the look for that raises."""

from pathlib import Path

import pytest

from common.settings import Settings
from lifecycle.jobs import job_process
from storage import jobs
from storage.database import Database
from tests.e2e.conftest import wait_for


def test_cancelling_works_after_a_look_that_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        # In short sleeps: an interrupt from within the process ends none.
        wait_for(lambda: False, 60, "the interrupt")
    assert asked == [17, 17, 17]
    database.close()
