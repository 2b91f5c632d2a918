"""The pipeline on machines that are set up in another way: paths, accounts and file systems."""

import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import copy_checkout, free_ports, own_environment, wait_for
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
