"""A check reads from a real Triton how the first stage of its version does, and records when it is turned off."""

import asyncio
import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lifecycle.monitoring.first_stage import FirstStage, first_stage
from serving.client.triton_client import TritonClient
from serving.model_repo.bundle import FIRST_STAGE, Bundle
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, serving
from tests.serving.backend.test_two_stages import TEXTS
from tests.serving.backend.test_two_stages import directory as directory  # a fixture

pytestmark = pytest.mark.full


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (FirstStage(True, 0, 0, 0, 0), "its first stage has decided no text yet"),
        (
            FirstStage(True, 10_000, 6_049, 1_234, 3),
            "its first stage decided 60% of the texts (3 of 1,234 audited texts got another label)",
        ),
        (
            FirstStage(False, 9_000, 500, 60, 12),
            "its first stage is off, because it changed too many labels (12 of 60 audited texts got another label), so "
            "predictions cost more time",
        ),
    ],
)
def test_a_sentence_says_how_it_does(stage: FirstStage, told: str) -> None:
    assert str(stage) == told


def test_without_a_triton_of_its_own_nothing_is_known(tmp_path: Path, bert_bundle: Path) -> None:
    served = make_served(tmp_path, bert_bundle, versions=1)
    assert first_stage(served.settings, 1) is None, "it does not run"
    other = served.settings.model_copy(update={"triton_url": "triton:8001"})
    assert first_stage(other, 1) is None
    (tmp_path / "file").touch()
    unusable = served.settings.model_copy(update={"state_dir": tmp_path / "file"})
    assert first_stage(unusable, 1) is None


def test_a_check_records_that_the_first_stage_was_turned_off(
    tmp_path: Path, bert_bundle: Path, directory: Path
) -> None:
    served = make_served(
        tmp_path, bert_bundle, versions=1, SENTIMENT_RUNTIME="onnxruntime", SENTIMENT_PRECISION="float32"
    )
    staging = served.repository.staging_directory(2)
    shutil.copytree(bert_bundle, staging, dirs_exist_ok=True)
    shutil.copytree(directory / FIRST_STAGE, staging / FIRST_STAGE)
    replace(Bundle.load(directory), version=2).save(staging)
    served.repository.publish(staging, 2)
    served.repository.deploy(2)
    for name in ("train", "val"):
        rows = [(f"{name} text {number}", ("Negative", "Positive")[number % 2]) for number in range(60)]
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    with serving(served):
        assert first_stage(served.settings, 1) is None, "version 1 has one stage, and is not loaded"
        wait_for(lambda: first_stage(served.settings, 2) is not None, 20, "the engine's metrics")
        found = first_stage(served.settings, 2)
        assert found is not None
        assert found.is_on
        _turn_off(served)
        for _ in range(2):
            job = served.check()
            assert job["state"] == "succeeded", str(job)
            assert job["result"]["first_stage"]["is_on"] is False
            assert "its first stage is off, because it changed too many labels" in job["result"]["summary"]
        (event,) = served.ask("GET", "/events?kind=first-stage-off").json()
        assert event["version"] == 2
        assert event["figures"]["differing"] >= 2
        log = (served.settings.state_dir / "logs" / "triton.log").read_text(errors="replace")
        assert "The first stage is off: on the newest texts, it changes the label more often than the limit" in log


def _turn_off(served: Served) -> None:
    """Ask for predictions until the audit has turned the first stage off."""

    async def ask() -> None:
        client = TritonClient(served.settings.bundled_triton)
        for _ in range(40):
            await client.classify(TEXTS[:64], 60)
        await client.close()

    def is_off() -> bool:
        asyncio.run(ask())
        found = first_stage(served.settings, 2)
        return found is not None and not found.is_on

    wait_for(is_off, 120, "the audit to turn the first stage off")
