"""Three Tritons, two gateways behind nginx and a scheduler, on one PostgreSQL and one repository, under load."""

import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from common.errors import PipelineError
from serve import check_ports
from serving.backend.cpu import arithmetic
from serving.client.errors import TritonUnavailableError
from serving.client.triton_client import TritonClient
from serving.model_repo.bundle import Bundle, Proof
from serving.model_repo.variants import BFLOAT16, FLOAT32, OPENVINO, Precision
from storage import events
from storage.database import Database
from tests.callers import Callers
from tests.e2e.conftest import PROJECT, free_ports, wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served
from tests.pages import blocks

pytestmark = pytest.mark.full

LINES = [line for code in blocks("docs/many-machines.md") for line in code.splitlines()]
COMMANDS = [line for line in LINES if "app.py" in line]
"""Of the documentation: three Tritons, a gateway, a scheduler."""
CONTROL_KEY = "a-key-of-model-control"
KNOWN_S = 5.0
"""A gateway may notice only after a second that its known answers are the version before's, or later if it is busy."""

_NGINX = """
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx.log;
{user}
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  # A gateway closes what is idle for 5 s; nginx must do so before, or it asks over a connection that is just closed.
  upstream gateways {{ {servers} keepalive 32; keepalive_timeout 2s; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://gateways;
      proxy_next_upstream off;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_read_timeout 120s;
    }}
  }}
}}
"""


@dataclass
class Fleet:
    """The processes, by the order of the documentation's commands."""

    served: Served
    port: int
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def tritons(self) -> list[str]:
        return [f"127.0.0.1:{self.port + 10 * number + 1}" for number in range(3)]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port + 50}"

    def start(self, name: str, command: str, **settings: str) -> None:
        """Run a command of the documentation, on ports that are free here."""
        command = re.sub(r"\b90(\d\d)\b", lambda found: str(self.port + int(found[1])), command)
        words = [word.replace("app.py", str(PROJECT / "app.py")) for word in shlex.split(command)]
        words = [sys.executable if word == "python" else word for word in words]
        environment = {**self.served.environment, **settings}
        with (self.served.directory / f"{name}.log").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                ["env", *words], cwd=self.served.directory, env=environment, stdout=output, stderr=output
            )

    def start_triton(self, number: int, **settings: str) -> None:
        self.start(f"triton-{number + 1}", COMMANDS[number], **settings)

    def log(self, name: str) -> str:
        return (self.served.directory / f"{name}.log").read_text(errors="replace")

    def server(self, number: int) -> psutil.Process:
        """The Triton in the process that supervises it."""
        supervisor = psutil.Process(self.processes[f"triton-{number + 1}"].pid)
        return next(child for child in supervisor.children() if child.name() == "tritonserver")

    def versions(self, number: int) -> set[int]:
        """What a Triton would answer with; none while it does not run."""

        async def loaded() -> set[int]:
            client = TritonClient(self.tritons[number], control_key=CONTROL_KEY)
            try:
                return await client.loaded_versions()
            except TritonUnavailableError:
                return set()
            finally:
                await client.close()

        return asyncio.run(loaded())

    def is_ready(self) -> bool:
        with suppress(httpx.TransportError):
            return all(
                httpx.get(f"http://127.0.0.1:{self.port + offset}/health/ready", timeout=5).is_success
                for offset in (30, 40)
            )
        return False

    def kill_host(self, number: int) -> None:
        """Kill what supervises a Triton, and return when its ports can be used again: Triton notices, and ends."""
        server = self.server(number)
        host = self.processes[f"triton-{number + 1}"]
        host.kill()
        host.wait()

        def is_gone() -> bool:
            with suppress(psutil.NoSuchProcess):
                return server.status() == psutil.STATUS_ZOMBIE
            return True

        wait_for(is_gone, 90, f"the Triton of {self.tritons[number]} to be gone")
        settings = self.served.settings.model_copy(update={"port": self.port + 10 * number})

        def can_start() -> bool:
            with suppress(PipelineError):
                check_ports(settings, gateway=False)
                return True
            return False

        wait_for(can_start, 30, f"the ports of {self.tritons[number]} to be free")

    def post(self, path: str) -> httpx.Response:
        return httpx.post(self.url + path, headers={"X-API-Key": ADMIN_KEY}, timeout=240)

    def promote(self, version: int) -> httpx.Response:
        return self.post(f"/models/{version}/promote")

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        late = []
        for name, process in self.processes.items():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                late.append(name)
        assert not late


@pytest.fixture
def fleet(tmp_path: Path, bert_bundle: Path, postgres_url: str) -> Iterator[Fleet]:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed (Debian and Ubuntu: apt-get install nginx)")
    assert LINES[0] == 'echo "SENTIMENT_TRITON_KEY=$(openssl rand -hex 24)" >> .env'
    served = make_served(
        tmp_path, bert_bundle, versions=4, SENTIMENT_DATABASE_URL=postgres_url, SENTIMENT_TRITON_KEY=CONTROL_KEY
    )
    refuse_openvino(served, 3)
    started = Fleet(served, free_ports(60))
    try:
        for number, runtime in enumerate(("onnxruntime", "onnxruntime", "openvino")):
            started.start_triton(number, SENTIMENT_RUNTIME=runtime)
        wait_for(lambda: all(started.versions(number) == {1} for number in range(3)), 120, "three Tritons")
        for name, offset in (("gateway-1", 30), ("gateway-2", 40)):
            settings = {"SENTIMENT_STATE_DIR": str(tmp_path / name), "SENTIMENT_PORT": str(started.port + offset)}
            started.start(name, COMMANDS[3], **settings)
        started.start("scheduler", COMMANDS[4], SENTIMENT_STATE_DIR=str(tmp_path / "scheduler"))
        configuration = _NGINX.format(
            directory=tmp_path,
            user="user root;" if os.geteuid() == 0 else "",
            port=started.port + 50,
            servers=" ".join(f"server 127.0.0.1:{started.port + offset} max_fails=0;" for offset in (30, 40)),
        )
        (tmp_path / "nginx.conf").write_text(configuration)
        started.processes["nginx"] = subprocess.Popen([nginx, "-c", tmp_path / "nginx.conf", "-p", tmp_path])
        wait_for(started.is_ready, 120, "two gateways")
        yield started
    finally:
        started.end()


def refuse_openvino(served: Served, version: int) -> None:
    """Make a version that a Triton which runs OpenVINO alone cannot load, though others can."""
    directory = served.repository.version_directory(version)

    def refused(precision: Precision) -> Proof:
        return Proof(OPENVINO, precision, arithmetic(), 100, 1, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 1.0, "its labels differ")

    replace(Bundle.load(directory), proofs=(refused(FLOAT32), refused(BFLOAT16))).save(directory)


@dataclass(frozen=True)
class Answer:
    """What a caller got, and when by the clock of the wall."""

    sent: float
    came: float
    way: str
    """`new` and `known` texts through nginx, or `grpc` straight to a Triton, naming no version."""
    status: int
    version: int


class Load(Callers):
    """Callers that ask until the end of the block, each with a short pause after an answer."""

    def __init__(self, fleet: Fleet) -> None:
        self.answers: list[Answer] = []
        self._fleet = fleet
        calls = [partial(self._call, number) for number in range(6)]
        super().__init__([*calls, *(partial(self._call_triton, address) for address in fleet.tritons)])

    def _call(self, number: int) -> None:
        with httpx.Client(base_url=self._fleet.url, timeout=60) as client:
            count = 0
            while not self.ended.wait(0.1):
                count += 1
                way = "known" if count % 4 == 0 else "new"
                text = f"known {count % 8}" if way == "known" else f"text {number} {count}"
                sent = time.time()
                response = client.post("/predict/live", json={"text": text})
                version = int(response.headers.get("x-model-version", 0))
                self.answers.append(Answer(sent, time.time(), way, response.status_code, version))

    def _call_triton(self, address: str) -> None:
        async def call() -> None:
            client = TritonClient(address)
            while not self.ended.is_set():
                sent = time.time()
                try:
                    version = (await client.classify(["text"], 30)).version
                except TritonUnavailableError:
                    pass  # the one that is killed
                else:
                    self.answers.append(Answer(sent, time.time(), "grpc", 200, version))
                await asyncio.sleep(0.05)
            await client.close()

        asyncio.run(call())


def switched_at(fleet: Fleet) -> float:
    return (fleet.served.repository.model / "config.pbtxt").stat().st_mtime


def assert_no_mixture(answers: list[Answer], before: int, after: int, switch: float, told: float) -> None:
    """None by the new version before the switch, and none by the old one once the promotion was told as done."""
    assert {answer.version for answer in answers} == {before, after}
    early = [answer for answer in answers if answer.came < switch and answer.version != before]
    assert not early
    until = {"new": told, "grpc": told, "known": switch + KNOWN_S}
    late = [answer for answer in answers if answer.sent > until[answer.way] and answer.version != after]
    assert not late
    for way in until:
        of_old = [answer.sent for answer in answers if answer.way == way and answer.version == before]
        print(f"{way}: the last request that the old version answered was sent {max(of_old) - switch:+.3f} s from it")
        assert any(answer.way == way and answer.version == after for answer in answers)


def test_a_promotion_reaches_every_triton_at_one_moment_or_none(fleet: Fleet) -> None:
    with Load(fleet) as load:
        time.sleep(1)
        answered: list[tuple[httpx.Response, float]] = []
        promoting = threading.Thread(target=lambda: answered.append((fleet.promote(2), time.time())))
        promoting.start()
        tickets = fleet.served.repository.model / ".switch"
        # The sign of life lies beside them.
        wait_for(lambda: tickets.is_dir() and len(list(tickets.iterdir())) == 4, 30, "the Tritons to be loading")
        fleet.server(1).kill()
        killed = time.time()
        promoting.join()
        response, told = answered[0]
        assert response.json() == {"version": 2}, response.text
        # The one that was killed may still be starting.
        wait_for(lambda: [fleet.versions(number) for number in range(3)] == [{2}] * 3, 60, "all to have version 2")
        time.sleep(KNOWN_S + 1)
    assert {answer.status for answer in load.answers} == {200}
    switch = switched_at(fleet)
    assert killed < switch, "it was to be killed in the middle"
    assert "Triton ended after" in fleet.log("triton-2")
    assert_no_mixture(load.answers, 1, 2, switch, told)

    with Load(fleet) as load:
        held_back = fleet.promote(3)
        time.sleep(1)
    assert held_back.status_code == 409
    detail = held_back.json()["detail"]
    assert f"Version 3 could not be deployed, version 2 stays deployed: Triton at {fleet.tritons[2]}: " in detail
    assert "cannot run version 3 here" in detail
    assert not any(address in detail for address in fleet.tritons[:2])
    database = Database(fleet.served.settings.database)
    (event,) = events.newest(database, 1, "promotion-failed")
    database.close()
    assert event.message == detail
    assert {(answer.status, answer.version) for answer in load.answers} == {(200, 2)}
    assert switched_at(fleet) == switch
    assert [fleet.versions(number) for number in range(3)] == [{2}] * 3

    # One whose whole host is gone is passed over, and comes up with what was deployed meanwhile.
    fleet.kill_host(2)
    with Load(fleet) as load:
        time.sleep(0.5)
        assert fleet.promote(4).json() == {"version": 4}
        fleet.start_triton(2, SENTIMENT_RUNTIME="openvino")
        wait_for(lambda: fleet.versions(2) == {4}, 120, "the third Triton to come back")
        # Back at once is what was rolled back from, on all three.
        assert fleet.post("/models/rollback").json() == {"version": 2}
        assert [fleet.versions(number) for number in range(3)] == [{2}] * 3
    assert {answer.status for answer in load.answers} == {200}
    assert not [answer for answer in load.answers if answer.sent > switched_at(fleet) + KNOWN_S and answer.version != 2]
    assert json.loads(httpx.get(f"{fleet.url}/health/ready").text) == {"status": "ready"}
