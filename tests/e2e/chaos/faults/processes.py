"""The pipeline's own processes are killed, or find their port taken."""

import contextlib
import signal
import socket
import time

import psutil

from lifecycle.jobs.job_process import LEASE_S
from tests.e2e.chaos.fault import Fault
from tests.e2e.chaos.surroundings import full, has_own_mounts
from tests.e2e.chaos.target import GOOD, Target
from tests.e2e.conftest import wait_for

RESTART_S = 1.0
"""After which systemd, or who else watches the pipeline, would start it again."""
LEARNING_S = 600.0
"""It has a small share of a processor that the load uses too."""
MLFLOW_AWAY_S = 15.0
SUSPENDED_S = LEASE_S + 15.0
"""Longer than its lease holds, so that another process may go on with the job."""


def _kill_gateway(target: Target) -> None:
    assert target.served.process is not None
    target.served.process.send_signal(signal.SIGKILL)
    target.is_over()
    target.served.process.wait()
    time.sleep(RESTART_S)
    target.served.start()


def _take_port(target: Target) -> None:
    target.served.stop()
    with socket.create_server(("127.0.0.1", target.served.port)):
        ended = target.served.app("serve")
        assert ended.returncode == 1
        assert ended.stderr.count("\n") == 1, ended.stderr
        with (target.served.directory / "serve.log").open("a") as log:
            log.write(ended.stderr)
    target.is_over()
    target.served.start()


def _job_process(target: Target) -> psutil.Process:
    assert target.served.process is not None
    for child in psutil.Process(target.served.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "job" in child.cmdline():
                return child
    raise AssertionError("no process of a job")


def _begin_retraining(target: Target) -> int:
    """Ask for one, which is to be better than a version that has learnt nothing; returns its job, once it trains."""
    if target.served.repository.deployed() not in GOOD:
        target.promote(GOOD[0])
    job = int(target.served.ask("POST", "/retrain").json()["id"])
    wait_for(lambda: "Fine-tuning" in target.log(), LEARNING_S, "the training to begin")
    return job


def _end_of(target: Target, job: int) -> dict[str, object]:
    found: dict[str, object] = {}

    def has_ended() -> bool:
        found.update(target.served.ask("GET", f"/jobs/{job}").json())
        return found["ended_at"] is not None

    wait_for(has_ended, LEARNING_S, "the retraining to end")
    return found


def _kill_retraining(target: Target) -> None:
    job = _begin_retraining(target)
    _job_process(target).kill()
    target.is_over()
    _come_to_a_verdict(target, job)


def _suspend_retraining(target: Target) -> None:
    job = _begin_retraining(target)
    process = _job_process(target)
    process.suspend()
    time.sleep(SUSPENDED_S)
    process.resume()
    target.is_over()
    _come_to_a_verdict(target, job)


def _come_to_a_verdict(target: Target, job: int) -> None:
    """Wait until the retraining has, and remember what the version that it promoted, if it did, says."""
    ended = _end_of(target, job)
    assert ended["state"] in ("succeeded", "rejected"), ended["error"]
    target.is_well()
    version = target.served.repository.deployed()
    assert version is not None
    target.references.learn(version, target.served.repository.version_directory(version))


def _lose_mlflow(target: Target) -> None:
    job = _begin_retraining(target)
    target.mlflow.stop()
    wait_for(lambda: "Retrying" in target.log(), LEARNING_S, "the training to write to MLflow")
    time.sleep(MLFLOW_AWAY_S)
    target.mlflow.start()
    target.mlflow.wait()
    target.is_over()
    _come_to_a_verdict(target, job)


def _fill_disk(target: Target) -> None:
    serves = target.served.repository.deployed()
    job = _begin_retraining(target)
    with full(target.directory / "triton_repo"):
        ended = _end_of(target, job)
    assert ended["state"] == "failed", ended
    assert target.served.version() == serves


FAULTS = [
    Fault(
        "gateway-killed",
        "the gateway is killed, and started again",
        _kill_gateway,
        "Ready: version",
        cuts_connections=True,
    ),
    Fault(
        "port-taken",
        "another program has the port at the start",
        _take_port,
        "A port is not available",
        cuts_connections=True,
    ),
    Fault(
        "retraining-mlflow-down",
        f"MLflow is down when a training writes to it, and {MLFLOW_AWAY_S:.0f} s longer",
        _lose_mlflow,
        "Retrying",
    ),
    Fault("retraining-killed", "a retraining is killed", _kill_retraining, "was interrupted and resumes"),
    Fault(
        "retraining-lease-lost",
        f"a retraining is suspended for {SUSPENDED_S:.0f} s, and loses its lease",
        _suspend_retraining,
        "The lease for job .* was lost",
    ),
]
if has_own_mounts():
    does = "the model repository is full when a retraining exports"
    FAULTS.insert(2, Fault("retraining-disk-full", does, _fill_disk, "Job .* failed"))
