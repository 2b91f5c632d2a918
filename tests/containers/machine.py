"""A machine with Docker, in namespaces of this one: Debian trixie, with Docker and Compose of its packages.

Its processes, mounts and networks are its own, so nothing of this machine changes. It reaches the outside through
slirp4netns, and nothing reaches it but `Machine.shell`. Killing it is a power cut.
"""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import psutil

from tests.e2e.conftest import wait_for

MIRROR = "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,curl,docker-buildx,docker-cli,docker-compose,docker.io,iproute2,iptables,openssl,python3"
_NEEDED = ("debootstrap", "slirp4netns", "unshare", "nsenter", "ip")
_BOOT = Path(__file__).with_name("boot.sh")


def why_not() -> str:
    """Return why containers cannot run on this machine, or nothing if they can."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"containers need {', '.join(missing)} (Debian: apt-get install debootstrap slirp4netns iproute2)"
    probe = ["unshare", "--mount", "--net", "--pid", "--fork", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    if os.geteuid() != 0 or subprocess.run(probe, capture_output=True).returncode:
        return "containers need root and namespaces"
    return ""


def debootstrap(release: str, packages: str, tree: Path) -> None:
    """Make a directory with Debian's files of a release; it is either complete or absent."""
    if tree.exists():
        return
    with tempfile.TemporaryDirectory(prefix=f".{tree.name}-", dir=tree.parent) as directory:
        made = Path(directory) / "tree"
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", release, str(made), MIRROR]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=1_200)
        assert ended.returncode == 0, ended.stdout[-4_000:] + ended.stderr
        for unneeded in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(made / unneeded, ignore_errors=True)
        made.rename(tree)


class Machine:
    """Runs Docker; `cache` keeps Debian's files and the images, and `checkout` is its directory /checkout."""

    def __init__(self, cache: Path, checkout: Path) -> None:
        self._tree, self._images = cache / "machine", cache / "docker"
        self._checkout = checkout
        self._log = checkout.parent / "dockerd.log"
        self._processes: list[subprocess.Popen[bytes]] = []
        debootstrap("trixie", PACKAGES, self._tree)
        self._images.mkdir(exist_ok=True)
        self.wheels = self._tree / "srv"
        """Its directory /srv."""

    def start(self) -> None:
        """Start it, and return when Docker responds."""
        namespaces = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        arguments = [str(path) for path in (_BOOT, self._tree, self._images, self._checkout)]
        with self._log.open("ab") as output:
            outer = subprocess.Popen([*namespaces, "bash", *arguments], stdout=output, stderr=output)
            self._processes = [outer]
            wait_for(lambda: bool(psutil.Process(outer.pid).children()), 20, "the machine's first process")
            network = ["slirp4netns", "--configure", "--mtu=1500", "--disable-host-loopback"]
            self._processes.append(
                subprocess.Popen([*network, str(self._first()), "tap0"], stdout=output, stderr=output)
            )
        wait_for(self._responds, 120, "Docker to respond")

    def kill(self) -> None:
        """Cut its power: no process in it can end in order."""
        if self._processes and self._processes[0].poll() is None:
            os.kill(self._first(), signal.SIGKILL)
        for process in self._processes:
            process.kill()
            process.wait(30)

    def shell(self, commands: str, timeout_s: float = 600, given: bytes = b"") -> str:
        """Run commands in its directory /checkout, with `given` as their input; return what they print.

        Raises:
            AssertionError: the commands fail.
        """
        ended = self._run(commands, timeout_s, given)
        assert ended.returncode == 0, f"{commands}\n{ended.stdout.decode(errors='replace')[-8_000:]}"
        return ended.stdout.decode(errors="replace")

    def has_image(self, tag: str) -> bool:
        return self._run(f"docker image inspect {tag}", 60).returncode == 0

    def in_its_network(self, *command: str) -> list[str]:
        """Return a command that runs with this machine's files, but in that one's network."""
        return ["nsenter", "--target", str(self._first()), "--net", *command]

    def _run(self, commands: str, timeout_s: float, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        entered = ["nsenter", "--target", str(self._first()), "--mount", "--net", "--pid", "--ipc", "--uts", "--root"]
        environment = {"HOME": "/root", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TERM": "dumb"}
        shell = ["bash", "-euo", "pipefail", "-c", f"cd /checkout\n{commands}"]
        return subprocess.run(
            [*entered, *shell],
            input=given,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )

    def _first(self) -> int:
        return psutil.Process(self._processes[0].pid).children()[0].pid

    def _responds(self) -> bool:
        assert self._processes[0].poll() is None, self._log.read_text(errors="replace")[-4_000:]
        return self._run("docker info", 60).returncode == 0
