"""The whole loop on a real Triton with a tiny encoder, from two CSV files to a promoted retraining and back."""

import json
import signal
from pathlib import Path

import psutil

from tests.lifecycle.conftest import make_served, serving
from tests.lifecycle.learning import labelled, learning_settings, write_data


def test_train_serve_check_retrain_promote_roll_back_and_end(tmp_path: Path) -> None:
    write_data(tmp_path)
    story = make_served(tmp_path, tmp_path, versions=0, SENTIMENT_RELEASE="shadow", **learning_settings(tmp_path))

    def app(*arguments: str) -> str:
        ended = story.app(*arguments, timeout_s=900)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout + ended.stderr

    assert "Trained version 1" in app("train")
    assert "Version 1 is the one to serve" in app("export")
    with serving(story):
        live = story.ask("POST", "/predict/live", json={"text": "I love this product"})
        assert live.json()["predictions"]["label"] == {"0": "Positive"}
        assert live.headers["x-model-version"] == "1"
        texts = ["this screen is bright", "what a waste of two hours"]
        batch = story.ask("POST", "/predict/batch", json={"texts": texts})
        assert batch.json()["predictions"]["label"] == {"0": "Positive", "1": "Negative"}

        rows = [{"text": text, "label": label} for text, label in labelled(60, seed=2)]
        assert story.ask("POST", "/feedback", json={"feedback": rows}).json() == {"accepted": 60}
        check = story.check()
        assert (check["state"], check["result"]["version"], check["result"]["problems"]) == ("succeeded", 1, [])

        assert "Version 2 passed every gate" in app("retrain")
        candidate = next(model for model in story.ask("GET", "/models").json() if model["version"] == 2)
        assert {gate["gate"] for gate in candidate["gates"]} >= {"parity", "thresholds", "comparison", "behaviour"}
        assert all(gate["passed"] for gate in candidate["gates"])
        assert story.version() == 1
        assert "Version 2 is deployed." in app("promote", "2")
        assert story.version() == 2
        assert "Version 1 is deployed." in app("rollback")
        assert story.version() == 1
        kinds = [event["kind"] for event in story.ask("GET", "/events").json()][::-1]
        told = iter(kinds)
        assert all(kind in told for kind in ("checked", "retraining-started", "promoted", "rolled-back")), kinds

        assert story.process is not None
        pipeline = psutil.Process(story.process.pid)
        processes = [pipeline, *pipeline.children(recursive=True)]
        story.process.send_signal(signal.SIGINT)  # as Ctrl-C does
        assert story.process.wait(60) == 0, story.log
        story.process = None
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert "The pipeline has shut down." in story.log
    assert not list(Path("/dev/shm").glob(f"sentiment-{story.port + 1}-*"))
    assert json.loads((tmp_path / "model" / "training.json").read_text())["version"] == 2
