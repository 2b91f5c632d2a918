"""A real pipeline that serves small random models, so that it starts within seconds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from common.settings import Settings
from lifecycle.deployment import promotion
from serving.model_repo.bundle import TOKENIZER, Bundle
from serving.model_repo.repository import ModelRepository
from serving.model_repo.variants import FLOAT_GRAPH
from storage.database import Database
from tests.commands import KillPoint, run_command
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.storage.conftest import postgres_server, postgres_url

ADMIN_KEY = "the-admin-key"
__all__ = ["postgres_server", "postgres_url"]


@dataclass
class Served:
    """A directory with a model repository, and the `serve` that runs in it."""

    directory: Path
    port: int
    environment: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> Settings:
        given: dict[str, Any] = {
            name.removeprefix("SENTIMENT_").lower(): value
            for name, value in self.environment.items()
            if name.startswith("SENTIMENT_")
        }
        return Settings(**given)

    @property
    def repository(self) -> ModelRepository:
        return ModelRepository(self.directory / "triton_repo")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "serve.log").read_text(errors="replace")

    def database(self) -> Database:
        return Database(self.settings.database)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, str(PROJECT / "app.py"), *arguments]

    def app(
        self, *arguments: str, timeout_s: float = 300, kill_at: KillPoint | None = None
    ) -> subprocess.CompletedProcess[str]:
        return run_command(arguments, self.directory, self.environment, timeout_s, kill_at)

    def start(self) -> None:
        with (self.directory / "serve.log").open("ab") as output:
            self.process = subprocess.Popen(
                self.command("serve"), cwd=self.directory, env=dict(self.environment), stdout=output, stderr=output
            )
        wait_for(self.is_ready, 240, "serve to be ready")

    def is_ready(self) -> bool:
        assert self.process is None or self.process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                raise
            self.process = None

    def kill(self) -> None:
        assert self.process is not None
        triton = next(child for child in psutil.Process(self.process.pid).children(True) if "triton" in child.name())
        self.process.kill()
        self.process.wait()
        self.process = None
        # It notices, and ends in order.
        wait_for(lambda: not triton.is_running(), 30, "Triton to end")

    def ask(self, method: str, path: str, **named: object) -> httpx.Response:
        headers = {"X-API-Key": ADMIN_KEY}
        return httpx.request(method, self.url + path, headers=headers, timeout=90, **named)  # type: ignore[arg-type]

    def check(self) -> dict[str, Any]:
        """Request a check, and return the job when it has ended; on a busy machine that is after the response."""
        job: dict[str, Any] = self.ask("POST", "/check").json()
        while job["ended_at"] is None:
            time.sleep(0.2)
            job = self.ask("GET", f"/jobs/{job['id']}").json()
        return job

    def version(self) -> int:
        """What a new text is answered by."""
        answer = self.ask("POST", "/predict/live", json={"text": f"fine {time.monotonic_ns()}"})
        assert answer.is_success, answer.text
        return int(answer.headers["x-model-version"])


def publish(served: Served, bundle: Path, version: int) -> None:
    """The small model as another version."""
    publish_as(served.repository, bundle, version)


def publish_as(repository: ModelRepository, bundle: Path, version: int, **changed: Any) -> Bundle:
    """Publish a bundle as a version whose description has other values of some fields."""
    staging = repository.staging_directory(version)
    for file in bundle.iterdir():
        (staging / file.name).write_bytes(file.read_bytes())
    description = replace(Bundle.load(staging), version=version, **changed)
    description.save(staging)
    repository.publish(staging, version)
    return description


def hollow_bundle(directory: Path) -> Path:
    """A bundle for what no Triton ever loads."""
    bundle = directory / "bundle"
    bundle.mkdir()
    for name in (FLOAT_GRAPH, TOKENIZER):
        (bundle / name).write_text("the content of a file")
    Bundle(1, ("Negative", "Positive"), 64, 0, "none", "", "", {}, ()).save(bundle)
    return bundle


def make_served(directory: Path, bundle: Path, versions: int = 3, **settings: str) -> Served:
    """A repository with so many versions of the small model, the first deployed; nothing runs yet."""
    port = free_ports()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SENTIMENT_", "COLUMNS"))}
    environment |= {
        "SENTIMENT_HOME": str(directory),
        "SENTIMENT_PORT": str(port),
        "SENTIMENT_STATE_DIR": str(directory / "state"),
        "SENTIMENT_MODEL_REPOSITORY": str(directory / "triton_repo"),
        "SENTIMENT_MODEL_DIR": str(directory / "model"),
        "SENTIMENT_TRAIN_DATA": str(directory / "train.csv"),
        "SENTIMENT_VAL_DATA": str(directory / "val.csv"),
        "SENTIMENT_ADMIN_KEY": ADMIN_KEY,
        # Other tests run beside this one, and a job gives way to them as it does to a service.
        "SENTIMENT_JOB_CPU_SHARE": "0.5",
    } | settings
    served = Served(directory, port, environment)
    for version in range(1, versions + 1):
        publish(served, bundle, version)
    if versions:
        served.repository.deploy(1)
    return served


@contextmanager
def serving(served: Served) -> Iterator[Served]:
    """Run `serve` in the block."""
    served.start()
    try:
        yield served
    finally:
        served.stop()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path / 'sentiment.db'}")
    yield opened
    opened.close()


@pytest.fixture
def served(tmp_path: Path, bert_bundle: Path) -> Served:
    return make_served(tmp_path, bert_bundle)


@pytest.fixture
def running(served: Served) -> Iterator[Served]:
    with serving(served):
        yield served


@contextmanager
def reconciled(served: Served) -> Iterator[Database]:
    """The database, which knows what is deployed, as once the pipeline has started."""
    database = served.database()
    try:
        promotion.reconcile(served.settings, database)
        yield database
    finally:
        database.close()
