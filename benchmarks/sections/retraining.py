"""*retraining*: half of what can be served is asked for, alone, and then beside a whole retraining."""

import csv
import shutil
import time
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from benchmarks.offering import offer, outcome_figures
from benchmarks.processes import Server, running_pipeline
from benchmarks.results import in_a_line
from benchmarks.run import Run
from benchmarks.sections.server import START_TIMEOUT_S
from errors import PipelineError
from serving.repository import ModelRepository
from trainer.sample_data import write_sample_data

SECTION = "retraining"
GATEWAY = "gateway, live, half of the best"
ALONE = "alone"
TRAIN_TEXTS = 3_000
"""A fourth of the sample data, so that it ends within minutes."""
_HALF = 0.5
_WINDOW_S = 10.0
_WINDOWS_ALONE = 3
"""Before the retraining, and after it."""
_DEADLINE_S = 10.0
_START_TIMEOUT_S = 60.0


def measure(run: Run) -> None:
    """Retrain as often as a case is repeated, each time from the version that the run began with."""
    for repeat in range(run.repeats):
        directory = run.directory / f"retraining-{repeat}"
        repository = directory / "triton_repo"
        shutil.copytree(run.model.repository.root, repository)
        ModelRepository(repository).deploy(run.model.version)
        settings = _data(directory, seed=repeat) | {"SENTIMENT_BASE_MODEL": str(run.model.transformers)}
        with running_pipeline(repository, directory, settings) as pipeline:
            pipeline.wait_until_answering("/health/ready", START_TIMEOUT_S)
            best = run.live_load(pipeline, 64)(run.seconds)
            rate = _HALF * best["texts_per_s"]
            _alone(run, pipeline, rate)
            _beside(run, pipeline, rate, (directory / "state" / "admin_key").read_text())
            _alone(run, pipeline, rate)


def _alone(run: Run, pipeline: Server, rate: float) -> None:
    for _ in range(_WINDOWS_ALONE):
        _window(run, pipeline, rate, ALONE)


def _beside(run: Run, pipeline: Server, rate: float, key: str) -> None:
    """Have windows of load follow each other until a retraining has ended."""
    with httpx.Client(base_url=pipeline.url, headers={"X-API-Key": key}, timeout=30, trust_env=False) as client:
        number = client.post("/retrain").raise_for_status().json()["id"]

        def job() -> dict[str, Any]:
            found: dict[str, Any] = client.get(f"/jobs/{number}").raise_for_status().json()
            return found

        deadline = time.monotonic() + _START_TIMEOUT_S
        while job()["started_at"] is None:
            if time.monotonic() > deadline:
                raise PipelineError(f"The retraining did not begin within {_START_TIMEOUT_S:.0f} s.")
            time.sleep(0.1)
        while (now := job())["ended_at"] is None:
            # A step of a version is told with its number.
            _window(run, pipeline, rate, now["step"].partition(" version")[0])
        run.progress(f"{SECTION}: {now['state']} {now['result'] or now['error']}")


def _window(run: Run, pipeline: Server, rate: float, when: str) -> None:
    [outcome] = offer(run, pipeline, _DEADLINE_S, [(rate, _WINDOW_S)])
    figures = outcome_figures(outcome)
    run.results.measurement(SECTION, GATEWAY, when).add(figures)
    run.progress(f"{SECTION}: {rate:.0f}/s, {when}: {in_a_line(figures)}")


def _data(directory: Path, seed: int) -> dict[str, str]:
    """Write what is learnt from; the settings that name it."""
    train, val = directory / "all.csv", directory / "val.csv"
    write_sample_data(train, val, seed)
    few = directory / "train.csv"
    with train.open(encoding="utf-8", newline="") as source, few.open("w", encoding="utf-8", newline="") as output:
        csv.writer(output).writerows(islice(csv.reader(source), TRAIN_TEXTS + 1))
    return {"SENTIMENT_TRAIN_DATA": str(few), "SENTIMENT_VAL_DATA": str(val)}
