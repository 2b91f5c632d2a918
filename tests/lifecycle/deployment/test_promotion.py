"""Promotion and rollback on a real Triton, under load, and cut off at each of their steps."""

import signal
from collections import Counter
from functools import partial
from pathlib import Path

import httpx
import pytest

from lifecycle.deployment import promotion
from lifecycle.deployment.promotion import DeploymentError, UnknownVersionError
from serving.model_repo.bundle import TOKENIZER
from serving.model_repo.variants import FLOAT_GRAPH
from storage import deployments, events
from tests.callers import Callers
from tests.commands import KillPoint
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import Served, make_served, serving

pytestmark = pytest.mark.full

BEFORE_THE_SWITCH = [
    ("storage.deployments", "intend", "before"),
    ("storage.deployments", "intend", "after"),
    ("serving.model_repo.switch", "Switch.lay_ticket", "after"),
    ("serving.client.triton_client", "TritonClient.load_model", "before"),
    ("serving.model_repo.repository", "ModelRepository.deploy", "before"),
]
SINCE_THE_SWITCH = [
    ("serving.model_repo.repository", "ModelRepository.deploy", "after"),
    ("serving.client.triton_client", "TritonClient.classify", "before"),
    ("lifecycle.deployment.promotion", "roll_out", "after"),
    ("storage.deployments", "finish", "before"),
    ("storage.deployments", "finish", "after"),
    ("storage.events", "record", "before"),
    ("storage.events", "record", "after"),
    ("lifecycle.jobs.mlflow_alias", "set_alias", "before"),
]


class Load(Callers):
    """Callers that ask, each time another text, and pause after each answer, which leaves the processor to the rest."""

    def __init__(self, url: str, callers: int = 8, pause_s: float = 0.2) -> None:
        self.statuses: Counter[int] = Counter()
        self.versions: Counter[str] = Counter()
        self._url = url
        self._pause_s = pause_s
        super().__init__(partial(self._call, number) for number in range(callers))

    def _call(self, number: int) -> None:
        with httpx.Client(timeout=30) as client:
            count = 0
            while not self.ended.wait(self._pause_s):
                count += 1
                try:
                    answer = client.post(f"{self._url}/predict/live", json={"text": f"text {number} {count}"})
                except httpx.TransportError:
                    self.statuses[0] += 1
                    continue
                self.statuses[answer.status_code] += 1
                self.versions[answer.headers.get("x-model-version", "none")] += 1


def test_versions_change_under_load_and_no_request_fails(running: Served) -> None:
    with Load(running.url) as load:
        for version in (2, 3):
            assert running.ask("POST", f"/models/{version}/promote").json() == {"version": version}
            assert running.version() == version
        assert running.ask("POST", "/models/rollback").json() == {"version": 2}
        assert running.version() == 2
        assert running.ask("POST", "/models/rollback").json() == {"version": 1}
        assert running.version() == 1
    assert set(load.statuses) == {200}
    assert set(load.versions) == {"1", "2", "3"}
    refused = running.ask("POST", "/models/rollback")
    assert refused.status_code == 409
    assert "no previous version to roll back to" in refused.json()["detail"]

    models = {model["version"]: model for model in running.ask("GET", "/models").json()}
    assert models[1]["aliases"] == ["champion"]
    assert [time_["to"] is None for time_ in models[1]["served"]] == [False, True]
    assert len(models[2]["served"]) == 2
    kinds = [event["kind"] for event in running.ask("GET", "/events").json()]
    assert kinds[:4] == ["rolled-back", "rolled-back", "promoted", "promoted"]


def test_a_version_that_is_not_there_or_does_not_load_leaves_the_one_that_serves(running: Served) -> None:
    unknown = running.ask("POST", "/models/9/promote")
    assert unknown.status_code == 404
    assert "no version 9" in unknown.json()["detail"]
    assert running.ask("POST", "/models/1/promote").status_code == 409

    (running.repository.version_directory(2) / FLOAT_GRAPH).write_bytes(b"no graph")
    (running.repository.version_directory(3) / TOKENIZER).unlink()
    with Load(running.url) as load:
        for version, reason in ((2, "could not be deployed, version 1 stays deployed"), (3, f"{TOKENIZER} missing")):
            broken = running.ask("POST", f"/models/{version}/promote")
            assert broken.status_code == 409
            assert reason in broken.json()["detail"]
    assert set(load.statuses) == {200}
    assert set(load.versions) == {"1"}
    assert running.version() == running.repository.deployed() == 1


def test_what_is_deployed_while_nothing_runs_serves_at_the_next_start(served: Served) -> None:
    database = served.database()
    promotion.reconcile(served.settings, database)
    promotion.promote(served.settings, database, 2, "by hand")
    with pytest.raises(UnknownVersionError):
        promotion.promote(served.settings, database, 7, "by hand")
    with serving(served):
        assert served.version() == 2
        with pytest.raises(DeploymentError, match="Version 3 is no longer deployed; version 2 is"):
            promotion.roll_back(served.settings, database, "another was first", only_from=3)
        assert promotion.roll_back(served.settings, database, "by hand") == 1
        assert served.version() == 1
    with pytest.raises(DeploymentError, match="no previous version to roll back to"):
        promotion.roll_back(served.settings, database, "by hand")


def kill(served: Served, point: KillPoint, *command: str) -> None:
    """Run the command, and kill it at the point."""
    ended = served.app(*command, kill_at=point)
    assert ended.returncode == -signal.SIGKILL, ended.stdout + ended.stderr


def settled(served: Served) -> int:
    """The one version that disk, database and Triton agree on, once they do."""
    database = served.database()

    def agree() -> bool:
        with database.reading() as session:
            known = deployments.serving(session)
            return (
                not deployments.intended(session)
                and known is not None
                and known.version == served.repository.deployed() == served.version()
            )

    try:
        wait_for(agree, 60, "disk, database and Triton to agree")
    finally:
        database.close()
    return served.version()


def test_a_promotion_that_is_killed_anywhere_leaves_one_version(tmp_path: Path, bert_bundle: Path) -> None:
    points = [*BEFORE_THE_SWITCH, *SINCE_THE_SWITCH]
    outcomes = []
    with serving(make_served(tmp_path, bert_bundle, versions=len(points) + 1)) as running:
        for version, point in enumerate(points, start=2):
            kill(running, point, "promote", str(version))
            outcomes.append(settled(running) == version)
        # Nothing is left in the way of the next one.
        assert running.ask("POST", "/models/2/promote").json() == {"version": 2}
        assert not (running.repository.model / ".switch").exists()
    # Up to the switch the new version does not serve, and from then on it does.
    assert outcomes == [False] * len(BEFORE_THE_SWITCH) + [True] * len(SINCE_THE_SWITCH)


@pytest.mark.parametrize(("point", "version"), [(BEFORE_THE_SWITCH[-1], 1), (SINCE_THE_SWITCH[0], 2)])
def test_a_restart_settles_what_was_killed_with_everything_else(served: Served, point: KillPoint, version: int) -> None:
    served.start()
    kill(served, point, "promote", "2")
    served.kill()
    with serving(served):
        assert settled(served) == version


def test_a_rollback_that_is_killed_is_finished(running: Served) -> None:
    assert running.ask("POST", "/models/2/promote").is_success
    points = (*BEFORE_THE_SWITCH[2:5], SINCE_THE_SWITCH[0])
    for point in points:
        kill(running, point, "rollback")
        assert settled(running) == 1
        assert running.ask("POST", "/models/2/promote").is_success
    database = running.database()
    told = [event.message for event in events.newest(database, 100, "reconciled")]
    assert len(told) == len(points)
    assert all("was completed: version 1 is deployed" in message for message in told)


def test_a_directory_that_is_half_there_is_passed_over(served: Served) -> None:
    (served.repository.model / ".4.partial").mkdir()
    (served.repository.model / ".4.partial" / FLOAT_GRAPH).write_bytes(b"half")
    with serving(served):
        assert served.version() == 1
        assert [model["version"] for model in served.ask("GET", "/models").json()] == [3, 2, 1]
