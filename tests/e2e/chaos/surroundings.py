"""What stands around the pipeline and can fail: disks, a mail server, MLflow."""

import contextlib
import errno
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import trustme

from serving.host.die_with_parent import command_dying_with_parent
from tests.e2e.conftest import PROJECT, wait_for
from tests.mail_server import HOST, MailServer, server_context

NAMESPACE = "CHAOS_NAMESPACE"
"""Set in the environment of a process that has mounts of its own."""
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_MIB, STATE_MIB, REPOSITORY_MIB = 96, 256, 64
_mounted: list[Path] = []


def four_free_ports() -> int:
    """The first of four in a row, where the tests, which may run at the same time, do not look for theirs."""
    while True:
        first = random.SystemRandom().randrange(24_000, 32_000, 4)
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            for offset in range(4):
                opened.enter_context(socket.create_server((HOST, first + offset)))
            return first


def enter_namespace(arguments: list[str]) -> None:
    """Begin this program again with mounts of its own, so that a disk which it fills is nobody else's."""
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    unshare = ["unshare", *as_root, "--mount", "--propagation", "private"]
    if NAMESPACE in os.environ or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        return
    os.environ[NAMESPACE] = "1"
    os.execvp(unshare[0], [*unshare, sys.executable, "-m", "tests.e2e.chaos", *arguments])


def has_own_mounts() -> bool:
    return NAMESPACE in os.environ


def mount_small_disk(directory: Path, mebibytes: int) -> None:
    """A file system of its own, gone with the last process that sees it."""
    directory.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(directory)], check=True)
    _mounted.append(directory)


def unmount_small_disks() -> None:
    """End them, so that the directories can be removed."""
    while _mounted:
        subprocess.run(["umount", "--lazy", str(_mounted.pop())], check=True)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Leave no room on the directory's file system during the block."""
    assert has_own_mounts(), "only a disk of one's own may be filled"
    filler = directory / ".filler"
    with filler.open("wb") as file:
        step = 2**24
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), step)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                step //= 2
    try:
        yield
    finally:
        filler.unlink()


class Mail:
    """A mail server with STARTTLS and a login, which can be ended and begun, and what stands in its place."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.authority_file = directory / "authority.pem"
        authority.cert_pem.write_to_path(self.authority_file)
        self.server = MailServer(server_context(authority))
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        self._running.enter_context(self.server.running())

    def stop(self) -> None:
        self._running.close()

    def subjects(self) -> list[str]:
        return [str(message["Subject"]) for message in self.server.received]

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """In the server's place, one that takes connections and says nothing."""
        self.stop()
        taken: list[socket.socket] = []
        with socket.create_server((HOST, self.server.port)) as listener:
            listener.settimeout(0.1)
            ended = threading.Event()

            def take() -> None:
                while not ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        taken.append(listener.accept()[0])

            thread = threading.Thread(target=take)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()
                for connection in taken:
                    connection.close()
        self.start()


class Mlflow:
    """MLflow's tracking server, which can be ended and begun."""

    def __init__(self, directory: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._directory = directory
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin; `wait` until it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self._directory / 'tracking.db'}"]
        command += ["--artifacts-destination", str(self._directory / "artifacts")]
        with (self._directory / "mlflow.log").open("ab") as output:
            self._process = subprocess.Popen(
                command_dying_with_parent(command),
                cwd=PROJECT,
                env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
                stdout=output,
                stderr=output,
            )

    def wait(self) -> None:
        # One client: each new one reads all certificates, and the load waits for this thread meanwhile.
        with httpx.Client(base_url=self.url, timeout=5, trust_env=False) as client:

            def answers() -> bool:
                with contextlib.suppress(httpx.TransportError):
                    return client.get("/health").is_success
                return False

            wait_for(answers, 240, "MLflow to answer")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
