"""A state directory has one pipeline at a time."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.settings import Settings
from serving.host import pipeline_lock
from serving.host.pipeline_lock import only_pipeline


def test_a_second_pipeline_is_refused_until_the_first_one_ends(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    with (
        only_pipeline(settings),
        pytest.raises(PipelineError, match=rf"Another process \({os.getpid()}\) is starting or serving"),
        only_pipeline(settings),
    ):
        pass
    with only_pipeline(settings):
        pass


def test_a_pipeline_starts_though_somebody_looks_whether_one_is_running(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path)
    with (tmp_path / "pipeline.lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)  # as `running_pipeline` does for a moment
        ended = threading.Timer(0.1, fcntl.flock, (looking, fcntl.LOCK_UN))
        ended.start()
        with only_pipeline(settings):
            assert pipeline_lock.running_pipeline(settings) == f"process {os.getpid()}"
        ended.join()
