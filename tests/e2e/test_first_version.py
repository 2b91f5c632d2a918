"""The first start: a quick version answers soon, and the full training replaces it, whatever is killed meanwhile."""

import json
import os
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest

from serving.model_repo.bundle import Bundle
from storage import events
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served
from tests.lifecycle.learning import learning_settings, write_data

pytestmark = pytest.mark.full

CALLERS = 8
PAUSE_S = 0.2
"""Of each caller, so that the training beside them has a processor."""


class Start:
    """`python app.py` in a process group of its own."""

    def __init__(self, served: Served, number: int) -> None:
        self.path = served.directory / f"start-{number}.log"
        with self.path.open("wb") as output:
            self.process = subprocess.Popen(
                served.command(),
                cwd=served.directory,
                env=dict(served.environment),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self.path.read_text(errors="replace")

    def wait_for(self, words: str, timeout_s: float = 300) -> None:
        def said() -> bool:
            assert self.process.poll() is None or words in self.log, self.log
            return words in self.log

        wait_for(said, timeout_s, f"the log to say {words!r}")

    def kill(self) -> None:
        self.process.kill()  # those that it started notice, and end
        self.process.wait()


def keep_asking(url: str, ended: threading.Event, seen: Counter[str]) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        number = 0
        while not ended.wait(PAUSE_S):
            number += 1
            answer = client.post("/predict/live", json={"text": f"a good screen {threading.get_ident()} {number}"})
            seen[f"{answer.status_code} by {answer.headers.get('X-Model-Version')}"] += 1


def test_a_quick_version_serves_first_and_the_full_one_takes_over(tmp_path: Path) -> None:
    write_data(tmp_path)
    served = make_served(tmp_path, tmp_path, 0, **learning_settings(tmp_path), SENTIMENT_FIRST_VERSION="quick")

    state = served.settings.state_dir / "training"

    first = Start(served, 1)
    first.wait_for("Training a quick version first")
    wait_for(lambda: any(state.glob("*/checkpoint-*/trainer_state.json")), 300, "a checkpoint")
    first.kill()

    second = Start(served, 2)
    second.wait_for("Resuming the interrupted training")
    second.wait_for("Exporting version 1")
    second.kill()

    third = Start(served, 3)
    third.wait_for("The quick version is already trained")
    third.wait_for("Ready: version 1 is deployed")
    (model,) = served.ask("GET", "/models").json()
    assert model["quick"]
    assert model["metrics"]["accuracy"] > 0.9
    assert "Version 1 is a quick one: its accuracy and macro F1 are on " in served.app("models").stdout
    bundle = Bundle.load(served.repository.version_directory(1))
    assert [str(proof.variant) for proof in bundle.proofs] == ["onnxruntime float32"]
    assert bundle.base_model.startswith("all-MiniLM-L6-v2")
    third.wait_for("Retraining started (job 1)")
    assert "version 1 is a quick first version" in third.log
    third.kill()

    fourth = Start(served, 4)
    fourth.wait_for("Ready: version 1 is deployed")
    ended = threading.Event()
    seen: Counter[str] = Counter()
    callers = [threading.Thread(target=keep_asking, args=(served.url, ended, seen)) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        wait_for(lambda: served.repository.deployed() == 2, 900, "the full version to take over")
        wait_for(lambda: seen["200 by 2"] > CALLERS, 60, "answers by version 2")
    finally:
        ended.set()
        for caller in callers:
            caller.join()
        os.kill(fourth.process.pid, signal.SIGTERM)
        fourth.process.wait(60)
    assert set(seen) == {"200 by 1", "200 by 2"}, seen
    full = Bundle.load(served.repository.version_directory(2))
    assert (full.quick, full.base_model) == (False, str(tmp_path / "encoder"))
    told = {event.kind: event.message for event in events.newest(served.database(), 50)}
    assert "quick first version; the full training follows" in told["deployed"]
    assert "promoted" in told, json.dumps(told)
