"""A state directory has one pipeline at a time."""

import os
from pathlib import Path

import pytest

from common.errors import PipelineError
from common.settings import Settings
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
