"""Write the state of an older release as a fixture, by running that release; `test_upgrade.py` starts from it.

    git worktree add ../old RELEASE
    .venv/bin/python -m tests.upgrades.make_state ../old tests/upgrades/RELEASE.tar.xz
    git worktree remove ../old

Run it with packages that fit the older release. Everything that is written comes from the release's own commands and
HTTP routes: only the encoder that it starts from, the data files and `.env` are made here. The archive holds

- `.env`, the data files, a file of feedback, and `encoder`, the small random model that is fine-tuned;
- `model`, `triton_repo` with versions 1 and 2, and `.sentiment` with the database, MLflow's store and the admin key;
- `upgrade.json`: the directory that the absolute paths in MLflow's store begin with, and a client's API key.

A retraining has promoted version 2, which learnt from feedback. Version 1 was tried beside it and that was stopped.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from common.home import HOME
from tests.conftest import LABELS, make_tokenizer
from tests.e2e.conftest import free_ports, wait_for
from tests.lifecycle.learning import labelled, write_rows

ROOT_OF_PATHS = "directory"
CLIENT_KEY = "client_key"
NOTES = "upgrade.json"
FEEDBACK = labelled(60, seed=2)
REQUEST_NAME = "the first feedback"
IMPORTED = labelled(20, seed=4)
IMPORTED_FILE = "imported.csv"

_ENVIRONMENT_FILE = """\
# Settings of a release that still had all of these names.
SENTIMENT_BASE_MODEL=encoder
SENTIMENT_EPOCHS=4
SENTIMENT_LEARNING_RATE=3e-3
SENTIMENT_MAX_LENGTH=64
SENTIMENT_TRITON_HTTP=true
"""
_SIZE = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
_TRAIN, _VALIDATION = 640, 200
_LEFT_OUT = ("logs", "triton")
"""Folders of the state directory that each start writes anew."""
_LOOSE_UMASK = 0o022
"""What most systems give; old releases took it as it was."""


class _Release:
    """A checkout of a release, and the directory that it runs in."""

    def __init__(self, checkout: Path, directory: Path) -> None:
        self._app = [sys.executable, str(checkout.resolve() / "app.py")]
        self._directory = directory
        self._port = free_ports(8)
        named = {name: value for name, value in os.environ.items() if not name.startswith("SENTIMENT_")}
        self._environment = {**named, "SENTIMENT_PORT": str(self._port)}
        if (checkout / "common" / "home.py").exists():  # older releases run where they are started
            self._environment[HOME] = "."

    def run(self, *arguments: str) -> str:
        """Run a command to its end; returns what it prints."""
        ended = subprocess.run(
            [*self._app, *arguments],
            cwd=self._directory,
            env=self._environment,
            umask=_LOOSE_UMASK,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(ended.stdout)
        return ended.stdout

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Serve in the block."""
        process = subprocess.Popen(
            [*self._app, "serve"], cwd=self._directory, env=self._environment, umask=_LOOSE_UMASK
        )
        try:
            wait_for(lambda: self._is_ready(process), 120, "serve to be ready")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def _is_ready(self, process: "subprocess.Popen[bytes]") -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self._url}/health/ready").is_success
        return False

    def post(self, path: str, key: str, body: object, **headers: str) -> None:
        """Send a request as a client would."""
        answer = httpx.post(self._url + path, json=body, headers={"X-API-Key": key, **headers}, timeout=60)
        assert answer.is_success, answer.text

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}"


def make_state(checkout: Path, archive: Path) -> None:
    """Run the release in `checkout`, and pack what it leaves."""
    with tempfile.TemporaryDirectory(prefix="sentiment-state-") as name:
        directory = Path(name)
        write_start(directory)
        client_key = run_release(_Release(checkout, directory))
        notes = {ROOT_OF_PATHS: str(directory.resolve()), CLIENT_KEY: client_key}
        (directory / NOTES).write_text(json.dumps(notes), encoding="utf-8")
        pack(directory, archive)


def write_start(directory: Path) -> None:
    """Write what a user brings: settings, data, and the encoder to fine-tune."""
    directory.chmod(0o755)
    (directory / ".env").write_text(_ENVIRONMENT_FILE, encoding="utf-8")
    rows = labelled(_TRAIN + _VALIDATION, seed=1)
    write_rows(directory / "train_sentiment_data.csv", rows[:_TRAIN])
    write_rows(directory / "val_sentiment_data.csv", rows[_TRAIN:])
    write_rows(directory / IMPORTED_FILE, IMPORTED)
    tokenizer = make_tokenizer("bert")
    torch.manual_seed(7)
    config = AutoConfig.for_model("bert", vocab_size=tokenizer.vocab_size, num_labels=len(LABELS), **_SIZE)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory / "encoder")  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(directory / "encoder")


def run_release(release: _Release) -> str:
    """Train, serve, check, retrain and try a version on live texts; returns the key of a client."""
    release.run("train")
    release.run("export")
    client_key = release.run("keys", "add", "client", "--scope", "predict", "feedback").split()[-1]
    with release.serving():
        release.run("check")
        feedback = [{"text": text, "label": label} for text, label in FEEDBACK]
        release.post("/feedback", client_key, {"feedback": feedback}, **{"Idempotency-Key": REQUEST_NAME})
        release.run("feedback", IMPORTED_FILE)
        release.run("retrain")
        release.run("shadow", "1")
        for text, _ in labelled(60, seed=3):
            release.post("/predict/live", client_key, {"text": text})
        release.run("stop", "1")
        release.run("check")
    return client_key


def pack(directory: Path, archive: Path) -> None:
    """Write the directory as a small archive that has no names of accounts."""

    left_out = {f".sentiment/{name}" for name in _LEFT_OUT}

    def kept(item: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if item.name in left_out or not (item.isfile() or item.isdir()):
            return None
        item.uid = item.gid = 0
        item.uname = item.gname = ""
        return item

    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for path in sorted(directory.iterdir()):
            tar.add(path, path.name, filter=kept)
    print(f"{archive}: {archive.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="of the release")
    parser.add_argument("archive", type=Path, help="tar.xz file to write")
    options = parser.parse_args()
    make_state(options.checkout, options.archive)
