"""The pipeline under test, and what its answers should have been."""

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
from mlflow import MlflowClient
from sqlalchemy import select

from serving.backend.engine import Engine
from serving.model_repo.protocol import MODEL_NAME
from storage.database import Database
from storage.tables import Feedback
from tests.conftest import LABELS, REFERENCE, make_bundle, make_encoder
from tests.e2e.chaos.load import RATES, Asked, Load
from tests.e2e.chaos.surroundings import (
    REPOSITORY_MIB,
    SHARED_MEMORY,
    SHARED_MEMORY_MIB,
    STATE_MIB,
    Mail,
    Mlflow,
    four_free_ports,
    has_own_mounts,
    mount_small_disk,
)
from tests.lifecycle.conftest import Served, make_served, publish
from tests.lifecycle.learning import learning_settings, write_data
from tests.mail_server import PASSWORD, free_port
from tests.storage.conftest import PostgresServer

GOOD = (1, 2)
"""The versions that a fault may find and leave; their weights differ, so that no answer fits both."""
SCORE_TOLERANCE = 2e-4
"""Two roundings to four decimals, and float32 added up in another order."""


@dataclass
class Target:
    """A running pipeline, the load on it, and what stands around it."""

    served: Served
    load: Load
    mail: Mail
    mlflow: Mlflow
    directory: Path
    references: "References"
    postgres: PostgresServer | None = None
    """What it stands on; none where that is SQLite."""
    beside: list[Served] = field(default_factory=list)
    """Other hosts on the same database."""
    began: float = 0.0
    """When the fault began, by `time.monotonic`."""
    over: float = 0.0
    """When its cause was gone; 0 for when the fault's function returned."""
    well: float = 0.0
    """When what only the fault itself looks at was right again."""
    log_from: int = 0
    """Characters of the log that were there before."""

    def triton(self) -> psutil.Process:
        """Triton's process; waits for one that is being started."""
        return self._child("tritonserver")

    def stub(self) -> psutil.Process:
        """The process inside Triton that runs the model."""
        return self._child("triton_python_backend_stub")

    def _child(self, name: str) -> psutil.Process:
        assert self.served.process is not None
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for child in psutil.Process(self.served.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name() == name[:15] or child.name() == name:
                        return child
            time.sleep(0.05)
        raise AssertionError(f"no process {name}")

    def log(self) -> str:
        """What was logged since the fault began."""
        return self.served.log[self.log_from :] + "".join(host.log for host in self.beside)

    def is_over(self) -> None:
        """The cause is gone now; what the fault does from here on is to look."""
        self.over = time.monotonic()

    def is_well(self) -> None:
        """What requests do not show is right again now."""
        self.well = time.monotonic()

    def promote(self, version: int, status: int = 200) -> str:
        """Have a version serve, which is to be answered with `status`; returns what else it was answered."""
        answer = self.served.ask("POST", f"/models/{version}/promote")
        assert answer.status_code == status, f"promotion answered {answer.status_code}: {answer.text}"
        return answer.text

    def other(self) -> int:
        """The good version that does not serve."""
        return next(version for version in GOOD if version != self.served.repository.deployed())

    def publish_like(self, version: int) -> Path:
        """Publish another version with the weights of the first, to be spoilt; returns its directory."""
        directory = self.served.repository.version_directory(version)
        if not directory.exists():
            publish(self.served, self.directory / "bundles" / "1", version)
        return directory


@contextlib.contextmanager
def opened(served: Served) -> Iterator[Database]:
    database = served.database()
    try:
        yield database
    finally:
        database.close()


@contextlib.contextmanager
def running_target(directory: Path, rates: dict[str, float] = RATES, **settings: str) -> Iterator[Target]:
    """Run the pipeline with a load on it, a mail server, MLflow, and disks of its own where that can be."""
    if has_own_mounts():
        mount_small_disk(SHARED_MEMORY, SHARED_MEMORY_MIB)
        mount_small_disk(directory / "state", STATE_MIB)
        mount_small_disk(directory / "triton_repo", REPOSITORY_MIB)
    mail = Mail(directory)
    (directory / "mlflow").mkdir()
    mlflow = Mlflow(directory / "mlflow", free_port())
    mlflow.start()
    mail.start()
    served = _make_served(directory, mail, mlflow, settings)
    load = Load(served.url, rates)
    references = References(directory / "references")
    for version in GOOD:
        references.learn(version, served.repository.version_directory(version))
    try:
        mlflow.wait()
        _register(mlflow)
        served.start()
        load.start()
        yield Target(served, load, mail, mlflow, directory, references)
    finally:
        load.stop()
        _end(served)
        references.close()
        mlflow.stop()
        mail.stop()


def _register(mlflow: Mlflow) -> None:
    """Have MLflow know the good versions, which no training has registered."""
    client = MlflowClient(mlflow.url)
    client.create_registered_model(MODEL_NAME)
    run = client.create_run("0")
    for _ in GOOD:
        source = f"{run.info.artifact_uri}/model"
        client.create_model_version(MODEL_NAME, source, run.info.run_id, await_creation_for=0)


def _make_served(directory: Path, mail: Mail, mlflow: Mlflow, settings: dict[str, str]) -> Served:
    bundles = directory / "bundles"
    for version, weight_scale in zip(GOOD, (15, 11), strict=True):
        encoder = make_encoder("bert", directory / f"encoder {version}", weight_scale)
        make_bundle(encoder, bundles / str(version), version)
    write_data(directory)
    own = {
        "SENTIMENT_MLFLOW_TRACKING_URI": mlflow.url,
        "SENTIMENT_SMTP_HOST": "127.0.0.1",
        "SENTIMENT_SMTP_PORT": str(mail.server.port),
        "SENTIMENT_MAIL_USER": "loop@example.org",
        "SENTIMENT_MAIL_PASSWORD": PASSWORD,
        "SENTIMENT_MAIL_TO": "ada@example.org",
        "SENTIMENT_KEEP_VERSIONS": "100",
        # Faults are no reason to go back, as far as these versions are concerned.
        "SENTIMENT_MONITOR_MINUTES": "0",
        # A hundredth a day is more than the load tells in days.
        "SENTIMENT_FEEDBACK_ROWS": "100000000",
        "SENTIMENT_MIN_ACCURACY": "0",
        "SENTIMENT_MIN_MACRO_F1": "0",
        "SSL_CERT_FILE": str(mail.authority_file),
        **learning_settings(directory),
    }
    port = four_free_ports()
    served = make_served(directory, bundles / "1", versions=0, **own | settings, SENTIMENT_PORT=str(port))
    served.port = port
    for version in GOOD:
        publish(served, bundles / str(version), version)
    served.repository.deploy(GOOD[0])
    return served


def _end(served: Served) -> None:
    if served.process is None:
        return
    if served.process.poll() is not None:
        raise AssertionError(f"serve ended by itself:\n{served.log}")
    for process in psutil.Process(served.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
    try:
        served.stop()
    except subprocess.TimeoutExpired:
        served.process = None


class References:
    """What each version has to answer, by the engine in this process."""

    def __init__(self, directory: Path) -> None:
        """Keep copies in `directory`, for the originals may be spoilt."""
        self._directory = directory
        self._engines: dict[int, Engine] = {}

    def learn(self, version: int, bundle: Path) -> None:
        """Remember a good version."""
        if version not in self._engines:
            copy = self._directory / str(version)
            shutil.copytree(bundle, copy)
            self._engines[version] = Engine(copy, REFERENCE, cores=1)

    def wrong(self, asked: list[Asked]) -> list[Asked]:
        """Those whose answer is not what the version that they name says."""
        wrong = [item for item in asked if item.version not in self._engines]
        for version, engine in self._engines.items():
            mine = [item for item in asked if item.version == version]
            if not mine:
                continue
            values = engine.classify([text for item in mine for text in item.texts]).values
            start = 0
            for item in mine:
                right = values[start : start + len(item.texts)]
                start += len(item.texts)
                labels = [LABELS[index] for index in right.argmax(axis=1)]
                near = len(item.scores) == len(right) and np.allclose(
                    item.scores, right.max(axis=1), atol=SCORE_TOLERANCE
                )
                if item.labels != labels or not near:
                    wrong.append(item)
        return wrong

    def close(self) -> None:
        for engine in self._engines.values():
            engine.close()


def count_kept(database: Database, texts: list[str]) -> tuple[int, int]:
    """How many of the texts the database has not, and how many it has more than once."""
    with database.reading() as session:
        found = list(session.scalars(select(Feedback.text)))
    times: dict[str, int] = {}
    for text in found:
        times[text] = times.get(text, 0) + 1
    return sum(text not in times for text in texts), sum(times.get(text, 0) > 1 for text in texts)
