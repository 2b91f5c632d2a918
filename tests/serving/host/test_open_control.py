"""An external Triton that lets anyone load models, and so run code: whoever asks it says so loudly."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.host import triton
from serving.host.leftovers import sweep
from serving.host.open_control import OPEN
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served

pytestmark = pytest.mark.full


@pytest.fixture
def open_triton(tmp_path: Path, bert_bundle: Path) -> Iterator[tuple[Served, str]]:
    """A Triton as somebody may run it who does not know better; gives its address too."""
    served = make_served(tmp_path, bert_bundle, 1)
    settings = served.settings
    port = free_ports()
    command = [word for word in triton.command(settings) if not word.startswith(("--grpc-", "--metrics-"))]
    command += ["--grpc-address=127.0.0.1", f"--grpc-port={port}", "--allow-metrics=false"]
    with (tmp_path / "triton.log").open("wb") as output:
        process = subprocess.Popen(
            command,
            env=triton.environment(settings),
            cwd=triton.working_directory(settings),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    yield served, f"127.0.0.1:{port}"
    process.terminate()
    process.wait(60)
    sweep(process.pid, triton.shared_memory_prefix(settings))


def test_gateway_and_scheduler_report_a_triton_that_anyone_controls(open_triton: tuple[Served, str]) -> None:
    served, address = open_triton
    environment = {**served.environment, "SENTIMENT_TRITON_URL": address}
    processes = []
    logs = {}
    try:
        for command in ("gateway", "scheduler"):
            logs[command] = served.directory / f"{command}.log"
            with logs[command].open("wb") as output:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, PROJECT / "app.py", command],
                        cwd=served.directory,
                        env=environment,
                        stdout=output,
                        stderr=output,
                    )
                )
        for log in logs.values():
            wait_for(lambda log=log: "ERROR   Triton at" in log.read_text(), 120, "the report")  # type: ignore[misc]
            assert f"ERROR   Triton at {address}: {OPEN}" in log.read_text()
            assert log.read_text().count("anyone who reaches it may load models") == 1
        wait_for(lambda: httpx.get(f"{served.url}/health/ready").is_success, 60, "the gateway")
        ready = httpx.get(f"{served.url}/health/ready").json()
        assert ready["status"] == "ready"
        assert ready["warnings"] == [
            "1 of the Tritons let anyone who reaches them load models; the gateway's log says what to do."
        ]
        metrics = httpx.get(f"{served.url}/metrics", headers={"X-API-Key": ADMIN_KEY}).text
        assert "\nsentiment_open_tritons 1.0\n" in metrics
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
