"""The pipeline on machines that are set up in another way: paths, accounts and file systems."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import PROJECT, copy_checkout, free_ports, own_environment, wait_for
from tests.lifecycle.conftest import Served, make_served, serving
from tests.lifecycle.learning import learning_settings, write_data

pytestmark = pytest.mark.full

NAME = "it's a & (b) $c %d ?e é #1"
"""What a shell, a URL, a template and ASCII each take for something else, or do not take."""
SMALL_SHARED_MEMORY = 'mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm && exec "$@"'
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
MAKES_A_HOME = ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", "LANG", "LC_CTYPE")


@dataclass
class Service:
    """A copy of the checkout that a service unit runs: from the root directory, and without a home directory."""

    checkout: Path
    environment: dict[str, str]

    def command(self, *arguments: str) -> list[str]:
        return [str(self.checkout / ".venv" / "bin" / "python"), str(self.checkout / "app.py"), *arguments]

    def app(self, *arguments: str, prefix: tuple[str, ...] = (), status: int = 0, **settings: str) -> str:
        """Run a command to its end, which is to have this exit status; gives what it prints."""
        ended = subprocess.run(
            [*prefix, *self.command(*arguments)],
            cwd="/",
            env=self.environment | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert ended.returncode == status, ended.stdout
        return ended.stdout

    @contextmanager
    def running(self, prefix: tuple[str, ...], log: Path) -> Iterator[None]:
        """Train, export and serve in the block."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*prefix, *self.command()], cwd="/", env=self.environment, stdout=output, stderr=output, umask=0o027
            )
        try:
            wait_for(lambda: "Ready: version" in log.read_text() or process.poll() is not None, 400, "the service")
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()


@pytest.fixture
def service(tmp_path: Path) -> Service:
    checkout = tmp_path / NAME / "checkout"
    copy_checkout(checkout)
    (checkout / ".venv").symlink_to(sys.prefix)
    write_data(checkout)
    environment = {name: value for name, value in own_environment().items() if name not in MAKES_A_HOME}
    environment |= learning_settings(checkout) | {
        "LC_ALL": "C",
        "SENTIMENT_PORT": str(free_ports()),
        "SENTIMENT_BASE_MODEL": "encoder",
        "SENTIMENT_TRAIN_DATA": "train.csv",
        "SENTIMENT_VAL_DATA": "val.csv",
    }
    return Service(checkout, environment)


def mounting(script: str, *arguments: str) -> tuple[str, ...]:
    """A prefix of commands that see other mounts; empty where this account may not mount."""
    probe = subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return () if probe.returncode else ("unshare", "-m", "sh", "-c", script, *arguments)


def test_a_service_with_an_odd_path_and_little_shared_memory_trains_and_answers(
    service: Service, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{service.environment['SENTIMENT_PORT']}"
    with service.running(mounting(SMALL_SHARED_MEMORY, "sh"), tmp_path / "log"):
        answer = httpx.post(f"{url}/predict/live", json={"text": "a good product"}, timeout=15)
        assert answer.json()["predictions"]["label"] == {"0": "Positive"}
        texts = [f"{number} " + "terrible waste " * 130 for number in range(200)]
        answer = httpx.post(f"{url}/predict/batch", json={"texts": texts}, timeout=120)
        assert answer.is_success, answer.text
        assert set(answer.json()["predictions"]["label"].values()) == {"Negative"}
        assert service.app("predict", "a good product").startswith("Positive")
        service.app("keys", "add", "website", "--scope", "predict")
        assert "website" in service.app("keys", "list")
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME, "log"]
    assert [path.name for path in (tmp_path / NAME).iterdir()] == ["checkout"]
    state = service.checkout / ".sentiment"
    assert (state / "mlflow.db").is_file()
    assert (state / "sentiment.db").is_file()
    for path in (state, service.checkout / "model", service.checkout / "triton_repo"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_two_checkouts_run_side_by_side_and_a_second_start_says_what_to_do(tmp_path: Path, bert_bundle: Path) -> None:
    """The path of each goes through a symbolic link."""
    pipelines = []
    for name in ("first", "second"):
        checkout = tmp_path / name
        checkout.symlink_to(f"directory of the {name}")
        copy_checkout(checkout.resolve())
        served = make_served(checkout, bert_bundle, versions=1)
        pipelines.append(started_by(served, sys.executable, str(checkout / "app.py")))
    first, second = pipelines
    with serving(first):
        same_port = started_by(second, *second.program, SENTIMENT_PORT=str(first.port))
        for arguments in ((), ("serve",), ("triton",)):
            refusal = refused(same_port, *arguments)
            assert "Is the pipeline already running? Stop it, or set SENTIMENT_PORT to another port" in refusal
        state = first.environment["SENTIMENT_STATE_DIR"]
        same_state = started_by(second, *second.program, SENTIMENT_STATE_DIR=state)
        assert "another pipeline running with the same SENTIMENT_STATE_DIR? Stop it" in refused(same_state, "serve")
        with serving(second):
            assert (first.version(), second.version()) == (1, 1)
        assert first.version() == 1
        assert first.log.count("Started Triton") == 1
    assert "ERROR" not in first.log + second.log


def test_an_account_that_is_a_mere_number_without_a_home_serves(tmp_path: Path, bert_bundle: Path) -> None:
    """As in a container that is started with `--user 54321`; the files are its own."""
    as_number = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
    identity = subprocess.run([*as_number, "id", "-un"], capture_output=True, text=True)
    if "54321" not in identity.stdout:
        pytest.skip("this account cannot make user namespaces")
    assert "cannot find name" in identity.stderr
    served = started_by(
        make_served(tmp_path, bert_bundle, versions=1), *as_number, sys.executable, str(PROJECT / "app.py")
    )
    served.environment = {name: value for name, value in served.environment.items() if name not in MAKES_A_HOME}
    with serving(served):
        assert served.version() == 1
        for command in (("keys", "add", "website", "--scope", "predict"), ("predict", "good")):
            ended = served.app(*command)
            assert ended.returncode == 0, ended.stderr
        assert served.ask("POST", "/feedback", json={"text": "good", "label": "Positive"}).is_success
    assert "Traceback" not in served.log


@pytest.fixture
def one_cpu() -> Iterator[tuple[str, ...]]:
    """A prefix of commands that run in a control group whose parent has a quota of one CPU, as a slice of systemd."""
    hierarchy = Path("/sys/fs/cgroup")
    is_unified = (hierarchy / "cgroup.controllers").exists()
    outer = (hierarchy if is_unified else hierarchy / "cpu") / f"sentiment-test-{os.getpid()}"
    quota = {"cpu.max": "100000 100000"} if is_unified else {"cpu.cfs_quota_us": "100000"}
    try:
        (outer / "inner").mkdir(parents=True)
        for name, value in quota.items():
            (outer / name).write_text(value)
    except OSError:
        pytest.skip("this account cannot make control groups")
    try:
        yield ("sh", "-c", 'echo $$ > "$0" && exec "$@"', str(outer / "inner" / "cgroup.procs"))
    finally:
        for group in (outer / "inner", outer):
            wait_for(lambda group=group: _is_removed(group), 20, "the processes of the group to end")  # type: ignore[misc]


def _is_removed(group: Path) -> bool:
    with suppress(OSError):
        group.rmdir()
    return not group.exists()


def test_a_cpu_quota_of_a_group_around_it_bounds_threads_workers_and_calls(
    one_cpu: tuple[str, ...], tmp_path: Path, bert_bundle: Path
) -> None:
    app = (sys.executable, str(PROJECT / "app.py"))
    code = "from gateway.inference.micro_batching import MOST_CALLS; from serving.backend.cpu import usable_cores"
    told = subprocess.run(
        [*one_cpu, sys.executable, "-c", f"{code}; print(usable_cores(), MOST_CALLS)"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert told == "1 2\n"
    served = started_by(make_served(tmp_path, bert_bundle, versions=1), *one_cpu, *app)
    with serving(served):
        assert served.version() == 1
        assert " on 1 cores " in (tmp_path / "state" / "logs" / "triton.log").read_text()


@dataclass
class Started(Served):
    """A pipeline that is started by a command line of its own."""

    program: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        return [*self.program, *arguments]


def started_by(served: Served, *program: str, **settings: str) -> Started:
    return Started(served.directory, served.port, {**served.environment, **settings}, program=program)


def refused(served: Served, *arguments: str) -> str:
    """What a command prints that is to be refused."""
    ended = served.app(*arguments)
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


def test_a_checkout_that_cannot_be_written_runs_with_a_home_elsewhere(service: Service, tmp_path: Path) -> None:
    prefix = mounting(READ_ONLY, str(service.checkout))
    if not prefix:
        pytest.skip("this account cannot mount")
    home = tmp_path / "home"
    home.mkdir()
    refusal = service.app("data", prefix=prefix, status=1)
    assert "Read-only file system" in refusal
    assert "Traceback" not in refusal
    service.app("keys", "add", "website", "--scope", "predict", prefix=prefix, SENTIMENT_HOME=str(home))
    assert "website" in service.app("keys", "list", prefix=prefix, SENTIMENT_HOME=str(home))
    assert not (service.checkout / ".sentiment").exists()
