"""Whatever a gateway's watches raise, they go on, and `/metrics`, `/health/ready` and the log tell of it."""

import logging
import re
import threading
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from common import periodic
from gateway.auth import key_cache
from gateway.canary import release_watch, shadow_compare
from gateway.inference import deployed_model
from gateway.monitoring import recent_rates, sampling
from serving.client import replicas
from serving.host import open_control
from storage import releases
from storage.api_keys import Scope, add_key, revoke_key
from storage.database import Database
from tests.e2e.conftest import wait_for
from tests.gateway.conftest import gateway_client, until
from tests.gateway.fake_triton import FakeTriton

SECRET = "hunter2"


class Fault:
    """What the work of a task raises, while there is one; gateways that other tests left running are spared."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.runs = 0
        """Runs of the work that did not raise."""
        self._others = set(threading.enumerate())

    def around(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def strike() -> None:
            if threading.current_thread() not in self._others:
                if self.error is not None:
                    raise self.error
                self.runs += 1

        def faulty(*arguments: Any) -> Any:
            strike()
            return work(*arguments)

        return faulty


WATCHES: dict[str, tuple[type, str]] = {
    "API keys": (key_cache.KnownKeys, "_look"),
    "release on this gateway": (release_watch.ReleaseWatch, "_look"),
    "shadow comparison": (shadow_compare.Comparer, "_compare"),
    "recent rates": (recent_rates.Pulse, "look"),
    "prediction sample": (sampling.Sampler, "write"),
    "Tritons of sentiment": (replicas.Replicas, "_look"),
    "Tritons of sentiment_challenger": (replicas.Replicas, "_look"),
    "deployed model's readiness": (deployed_model.DeployedModel, "_until_due"),
    "Tritons' model control": (open_control.OpenControl, "_look"),
}


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(periodic, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(periodic, "LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(key_cache, "REFRESH_S", 0.05)
    monkeypatch.setattr(replicas, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(shadow_compare, "PAUSE_S", 0.05)
    monkeypatch.setattr(shadow_compare, "TIME_SHARE", 1.0)
    for module in (release_watch, recent_rates, sampling, open_control):
        monkeypatch.setattr(module, "INTERVAL_S", 0.05)


gateway = partial(gateway_client, release_compared=1)


def counted(http: httpx.Client, task: str) -> float:
    """How often the task has failed, as `/metrics` tells."""
    name = f'sentiment_periodic_task_failures_total{{task="{task}"}}'
    (line,) = [line for line in http.get("/metrics").text.splitlines() if line.startswith(name)]
    return float(line.removeprefix(name))


def warnings(http: httpx.Client, task: str) -> list[str]:
    response = http.get("/health/ready")
    assert response.status_code == 200
    return [warning for warning in response.json().get("warnings", []) if f"'{task}'" in warning]


@pytest.mark.parametrize("task", WATCHES)
def test_a_watch_outlives_what_it_raises(
    triton: FakeTriton,
    tmp_path: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    task: str,
) -> None:
    caplog.set_level(logging.INFO)
    with database.transaction() as session:
        releases.begin(session, 2, 1, releases.SHADOW, (), "by the test")
    fault = Fault()
    owner, name = WATCHES[task]
    monkeypatch.setattr(owner, name, fault.around(getattr(owner, name)))
    number = count()

    def asked(condition: Callable[[], bool]) -> bool:
        """Whether it is so, after a new text was answered: some watches have work only then."""
        assert http.post("/predict/live", json={"text": f"text {next(number)}"}).status_code == 200
        return condition()

    with gateway(triton, tmp_path, sample_per_minute=60_000) as http:
        until(lambda: http.get("/health/ready").is_success)
        wait_for(lambda: asked(lambda: fault.runs > 0), 60, "the watch to run")
        before = counted(http, task)
        fault.error = RuntimeError(f"{SECRET}\nand more")
        wait_for(lambda: asked(lambda: counted(http, task) >= before + 3), 60, "failures to be counted")
        wait_for(lambda: asked(lambda: bool(warnings(http, task))), 60, "the warning")
        (warning,) = warnings(http, task)
        assert re.fullmatch(
            rf"The task '{re.escape(task)}' has kept failing since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d UTC "
            r"\(RuntimeError\); the gateway's log says why\.",
            warning,
        )
        assert SECRET not in http.get("/health/ready").text
        runs = fault.runs
        fault.error = None
        wait_for(lambda: asked(lambda: fault.runs > runs and not warnings(http, task)), 60, "the watch to come back")
        failures = counted(http, task) - before
    told = [record.getMessage() for record in caplog.records if f"'{task}'" in record.getMessage()]
    if owner is replicas.Replicas:  # both are at fault
        failures = max(failures, 3)
    assert told == [
        f"The task '{task}' failed and is tried again: RuntimeError: {SECRET}",
        f"The task '{task}' works again after {failures:.0f} failures.",
    ]


def test_a_key_revoked_while_the_keys_could_not_be_read_is_refused_afterwards(
    triton: FakeTriton, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add_key(database, "somebody", [Scope.PREDICT])
    fault = Fault()
    with gateway(triton, tmp_path, access="keys") as http:
        until(lambda: http.get("/health/ready").is_success)
        monkeypatch.setattr(key_cache.KnownKeys, "_read", fault.around(key_cache.KnownKeys._read))

        def status() -> int:
            return http.post("/predict/live", json={"text": "a"}, headers={"X-API-Key": key}).status_code

        wait_for(lambda: status() == 200, 60, "the key to be known")
        fault.error = TypeError("nobody expected this")
        admin = {"X-API-Key": "the-admin-key"}
        wait_for(lambda: len(http.get("/health/ready", headers=admin).json()) == 2, 60, "the warning")
        revoke_key(database, "somebody")
        assert status() == 200
        fault.error = None
        wait_for(lambda: status() == 401, 60, "the revoked key to be refused")
