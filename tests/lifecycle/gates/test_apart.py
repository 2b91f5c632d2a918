"""A gateway and a scheduler apart, each a process of its own before a Triton that neither of them runs."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.host import triton
from serving.host.leftovers import sweep
from storage import jobs
from tests.e2e.conftest import PROJECT, wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served
from tests.lifecycle.learning import write_data

pytestmark = pytest.mark.full


class Apart:
    """Three processes: Triton, `gateway` and `scheduler`."""

    def __init__(self, served: Served) -> None:
        self.served = served
        settings = served.settings
        with (served.directory / "triton.log").open("wb") as output:
            self.triton = subprocess.Popen(
                triton.command(settings),
                env=triton.environment(settings),
                cwd=triton.working_directory(settings),
                stdout=output,
                stderr=output,
            )
        self.environment = {**served.environment, "SENTIMENT_TRITON_URL": settings.triton_address}
        self.shared_memory_prefix = triton.shared_memory_prefix(settings)
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, command: str) -> "subprocess.Popen[bytes]":
        with (self.served.directory / f"{command}.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, PROJECT / "app.py", command],
                cwd=self.served.directory,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)
        return process

    def log(self, command: str) -> str:
        return (self.served.directory / f"{command}.log").read_text()

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.served.url}/health/ready", timeout=5).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        for process in (*self.processes, self.triton):
            process.terminate()
            process.wait(30)
        sweep(self.triton.pid, self.shared_memory_prefix)


@pytest.fixture
def apart(tmp_path: Path, bert_bundle: Path) -> Iterator[Apart]:
    write_data(tmp_path)
    parts = Apart(make_served(tmp_path, bert_bundle, versions=1))
    yield parts
    parts.stop()


def test_a_gateway_without_a_scheduler_has_its_jobs_done_by_one_that_runs_elsewhere(apart: Apart) -> None:
    gateway = apart.start("gateway")
    wait_for(apart.is_ready, 90, "the gateway to be ready")
    database = apart.served.database()
    checking = subprocess.Popen(
        ["curl", "-s", "-X", "POST", f"{apart.served.url}/check", "-H", f"X-API-Key: {ADMIN_KEY}"],
        stdout=subprocess.PIPE,
    )
    wait_for(lambda: jobs.waiting(database, jobs.CHECK) is not None, 30, "the check to be asked for")
    assert "The scheduler runs here" not in apart.log("gateway")

    scheduler = apart.start("scheduler")
    output, _ = checking.communicate(timeout=90)
    assert b'"state":"succeeded"' in output
    database.close()
    for process, command in ((scheduler, "scheduler"), (gateway, "gateway")):
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, apart.log(command)
    assert "The scheduler has shut down." in apart.log("scheduler")
