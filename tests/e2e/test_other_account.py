"""Another account of the machine, and a neighbour in the network, get nothing of a pipeline that serves.

The pipeline is one that an older version left open: its directories, its database and its model repository can be read
by all when it starts. It lies where the other account could reach it. The account is made for the test where it may be.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from storage.api_keys import Scope, add_key
from tests.e2e.conftest import wait_for
from tests.lifecycle.conftest import ADMIN_KEY, Served, make_served, serving

SCRIPT = Path(__file__).with_name("another_account.py")
NOBODY = 65534
TEXTS = [f"The text that user {number} of this test wrote" for number in range(30)]
ADDRESS, NEIGHBOUR = "198.18.77.1", "198.18.77.2"
"""Of a pair of network interfaces; addresses for tests of networks (RFC 2544), which no network has."""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to run programs as another account of the machine"),
]


@dataclass
class OtherAccount:
    """A pipeline that serves, and somebody else on its machine."""

    user: int
    served: Served
    keys: list[str] = field(default_factory=list)

    def tries(self, what: str, argument: Any, *, user: int | None = None, prefix: tuple[str, ...] = ()) -> Any:
        """What it gets."""
        ended = subprocess.run(
            [*prefix, sys.executable, str(SCRIPT), str(self.user if user is None else user)],
            input=json.dumps({what: argument}),
            env={"PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)[what]

    def processes(self) -> list[psutil.Process]:
        assert self.served.process is not None
        pipeline = psutil.Process(self.served.process.pid)
        return [pipeline, *pipeline.children(recursive=True)]

    def triton(self) -> psutil.Process:
        return next(process for process in self.processes() if process.name() == "tritonserver")

    def kept(self) -> list[str]:
        """Where the pipeline keeps everything."""
        return [str(self.served.directory / name) for name in ("state", "triton_repo", "model")]

    def listening(self) -> set[tuple[str, int]]:
        return {
            (connection.laddr.ip.removeprefix("::ffff:"), connection.laddr.port)
            for process in self.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }

    def answers(self, text: str) -> bool:
        return self.served.ask("POST", "/predict/live", json={"text": text}).is_success

    def memory(self) -> list[Path]:
        return sorted(Path("/dev/shm").glob(f"sentiment-{self.served.port + 1}-*"))


@pytest.fixture(scope="module")
def user() -> Iterator[int]:
    name = f"sentiment-test-{os.getpid()}"
    useradd = shutil.which("useradd", path=f"{os.environ['PATH']}:/usr/sbin")
    if useradd is None or subprocess.run([useradd, "--no-create-home", name], capture_output=True).returncode:
        yield NOBODY
        return
    identity = subprocess.run(["id", "-u", name], capture_output=True, text=True, check=True)
    yield int(identity.stdout)
    subprocess.run([Path(useradd).with_name("userdel"), name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def other(user: int, bert_bundle: Path) -> Iterator[OtherAccount]:
    umask = os.umask(0o022)
    try:
        with tempfile.TemporaryDirectory(prefix="sentiment-other-account-") as name:
            directory = Path(name)
            directory.chmod(0o755)
            served = make_served(directory, bert_bundle, versions=1)
            (directory / "model").mkdir()
            (directory / "model" / "training.json").write_text("{}")
            database = served.database()
            account = OtherAccount(user, served, [add_key(database, "website", [Scope.PREDICT])])
            database.close()
            assert account.tries("read_everything", account.kept()), "nothing was open before, so nothing is shown"
            with serving(served):
                for text in TEXTS:
                    assert account.answers(text)
                    assert served.ask("POST", "/feedback", json={"text": text, "label": "Positive"}).is_success
                yield account
    finally:
        os.umask(umask)


def test_it_reads_and_writes_no_file_of_the_pipeline(other: OtherAccount) -> None:
    kept = other.tries("read_everything", other.kept(), user=0)
    assert any(TEXTS[0] in content for content in kept.values()), "root finds the texts, so they would be found"
    assert other.tries("read_everything", other.kept()) == {}
    assert other.tries("write_anything", [str(other.served.directory), *other.kept()]) == {}
    # What lies beside is the shell's: where the output goes that was redirected. No text and no key is in it.
    beside = other.tries("read_everything", [str(other.served.directory)])
    assert set(beside) == {str(other.served.directory), str(other.served.directory / "serve.log")}
    for secret in (ADMIN_KEY, *other.keys, *TEXTS):
        assert not any(secret in content for content in beside.values())


def test_it_reads_no_shared_memory(other: OtherAccount) -> None:
    memory = other.memory()
    assert memory
    assert other.tries("read_everything", [str(path) for path in memory]) == {}


def test_it_sees_nothing_of_the_processes_but_command_lines_without_secrets(other: OtherAccount) -> None:
    processes = [process.pid for process in other.processes()]
    assert other.tries("look_into_processes", processes) == {}
    lines = other.tries("command_lines", processes)
    assert len(lines) >= 3  # the gateway, Triton and its Python
    for line in lines.values():
        assert "restricted" not in line, "a key on a command line is a key for every account"
        for secret in (ADMIN_KEY, *other.keys, *TEXTS):
            assert secret not in line


def test_it_connects_to_no_socket_but_what_everybody_may_ask(other: OtherAccount) -> None:
    port = other.served.port
    assert other.listening() == {("127.0.0.1", port), ("127.0.0.1", port + 1)}
    assert [connection for connection in other.triton().net_connections("inet") if connection.status == "LISTEN"] == []
    sockets = {
        str(connection.laddr)
        for process in other.processes()
        for connection in process.net_connections("unix")
        if connection.laddr
    }
    assert not [path for path in sockets if path.startswith("\0")], "file rights do not guard abstract sockets"
    paths = [str(path) for path in other.served.directory.rglob("*") if path.is_socket()]
    assert paths, "Triton's sockets"
    assert other.tries("connect_to_sockets", paths) == {}


def test_it_takes_no_port_and_opens_no_memory_while_triton_starts_again(other: OtherAccount) -> None:
    port = other.served.port
    assert other.tries("become_the_server", [port, port + 1]) == {}
    before = other.triton()
    until = other.served.directory / "until"
    memory = f"sentiment-{port + 1}-"
    asked = json.dumps({"race": {"ports": [port, port + 1], "memory": memory, "until": str(until)}})
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), str(other.user)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as racing:
        assert racing.stdin is not None
        racing.stdin.write(asked)
        racing.stdin.close()
        racing.stdin = None
        try:
            time.sleep(0.5)
            before.kill()
            wait_for(lambda: not before.is_running(), 20, "Triton to end")
            wait_for(lambda: other.answers(f"fine {time.monotonic_ns()}"), 90, "Triton to serve again")
            assert all(other.answers(f"{TEXTS[0]} {number}") for number in range(20))
        finally:
            until.touch()
            output = racing.communicate(timeout=60)[0]
    found = json.loads(output)["race"]
    assert found["tries"] > 100
    assert found["seen"], "the memory was there, to be opened"
    assert found["got"] == {}


@pytest.fixture
def neighbourhood() -> Iterator[tuple[str, ...]]:
    """Another network namespace, joined to this one by a pair of interfaces; gives how to run a command in it."""
    name = f"sentiment-{os.getpid()}"
    here, there = f"sa{os.getpid()}", f"sb{os.getpid()}"
    commands = [
        ["netns", "add", name],
        ["link", "add", here, "type", "veth", "peer", "name", there, "netns", name],
        ["address", "add", f"{ADDRESS}/30", "dev", here],
        ["link", "set", here, "up"],
        ["-n", name, "address", "add", f"{NEIGHBOUR}/30", "dev", there],
        ["-n", name, "link", "set", there, "up"],
        ["-n", name, "link", "set", "lo", "up"],
    ]
    ip = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    try:
        for command in commands:
            if ip is None or subprocess.run([ip, *command], capture_output=True).returncode:
                pytest.skip("needs iproute2 and the right to make network namespaces")
        yield (str(ip), "netns", "exec", name)
    finally:
        for command in (["link", "delete", here], ["netns", "delete", name]):
            with contextlib.suppress(FileNotFoundError):
                subprocess.run([str(ip), *command], capture_output=True)


def test_a_neighbour_in_the_network_reaches_nothing(other: OtherAccount, neighbourhood: tuple[str, ...]) -> None:
    listening = {port for _, port in other.listening()} | {other.served.port + offset for offset in range(4)}
    with subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", ADDRESS, "0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as control:
        process = psutil.Process(control.pid)
        wait_for(lambda: bool(process.net_connections("inet")), 20, "the control to listen")
        [open_port] = {connection.laddr.port for connection in process.net_connections("inet")}
        addresses = [(ADDRESS, port) for port in (open_port, *sorted(listening))]
        got = other.tries("connect_to_addresses", addresses, user=0, prefix=neighbourhood)
        control.kill()
    assert got == {f"{ADDRESS} {open_port}": "connected"}  # so the way is there, and nothing of the pipeline at its end
    own = other.tries(
        "connect_to_addresses", [("127.0.0.1", port) for port in sorted(listening)], user=0, prefix=neighbourhood
    )
    assert own == {}


def test_after_all_that_it_serves_as_before(other: OtherAccount) -> None:
    assert other.served.process is not None
    assert other.served.process.poll() is None
    assert other.served.version() == 1
    assert other.served.ask("GET", "/models").is_success
    log = other.served.log
    assert "Traceback" not in log
    assert log.count("Triton ended") == 1, "only by this test's hand"
    assert log.count("Only this account can read ") == 1
