"""What one client can do to the others: `python -m tests.e2e.attacks` attacks a real pipeline and prints a table.

Each attack is a function that goes on until it is told to end. Meanwhile another client, with a key of its own,
sends live requests of new short texts (`attack_victim`). The table tells its median and 99th percentile without and
with the attack, the gateway's memory, what became of the attacker's requests, and whether a version was moved.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from common.home import HOME
from tests.e2e.conftest import PROJECT
from tests.lifecycle.conftest import Served, make_served

OPEN, KEYS = "auto", "keys"
FORM = "Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n"
JSON = "Content-Type: application/json\r\n"
LEAD_S = 0.7
"""How long before the attack the victim's process is started, which takes most of it."""
BODY_BYTES = 4 * 1024 * 1024
NUMBER = b"000000000"
"""In a text, where `Attacker.new` puts another number."""


@dataclass
class Attacker:
    """A client without a key."""

    port: int
    ended: threading.Event = field(default_factory=threading.Event)
    outcomes: "Counter[str]" = field(default_factory=Counter)
    number: "Iterator[int]" = field(default_factory=lambda: iter(range(10**9)))
    """For texts that are new."""

    def connect(self, source: str = "127.0.0.1", timeout_s: float = 60) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s, source_address=(source, 0))

    def send(self, line: str, body: bytes, headers: str = JSON, source: str = "127.0.0.1") -> None:
        """Send one request on a connection of its own, and count what came of it."""
        data = (
            f"{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        )
        self.exchange(data.encode() + body, source)

    def exchange(self, data: bytes, source: str = "127.0.0.1") -> None:
        answer = b""
        try:
            with self.connect(source) as connection:
                connection.sendall(data)
                while not self.ended.is_set() and (part := connection.recv(65_536)):
                    answer = answer or part[:12]
        except OSError as error:
            self.outcomes[type(error).__name__] += 1
        else:
            self.outcomes[answer[9:12].decode() or "nothing"] += 1

    def keep_sending(self, callers: int, send: Callable[[int], None], pause_s: float = 0.0) -> None:
        """Have so many send without a pause, each with its number, until the attack ends."""

        def keep(caller: int) -> None:
            while not self.ended.is_set():
                send(caller)
                self.ended.wait(pause_s)

        threads = [threading.Thread(target=keep, args=(caller,), daemon=True) for caller in range(callers)]
        for thread in threads:
            thread.start()
        self.ended.wait()
        for thread in threads:
            thread.join(5)

    def hold(self, count: int, data: bytes, pause_s: float = 0.0) -> None:
        """Keep so many connections open that have sent `data`, and open new ones for those that are closed."""
        held: list[socket.socket] = []
        while not self.ended.is_set():
            while len(held) < count and not self.ended.is_set():
                try:
                    connection = self.connect(timeout_s=5)
                    held.append(connection)
                    connection.sendall(data)
                    self.outcomes["held"] += 1
                except OSError as error:
                    self.outcomes[type(error).__name__] += 1
                    self.ended.wait(0.1)
                    break
                connection.setblocking(False)
            still = []
            for connection in held:
                try:
                    answer = connection.recv(65_536)
                except BlockingIOError:
                    still.append(connection)
                except OSError:
                    self.outcomes["reset"] += 1
                else:
                    if answer:
                        self.outcomes[answer[9:12].decode("latin-1")] += answer.startswith(b"HTTP/1.1 ")
                        still.append(connection)
                    else:
                        connection.close()
            held = still
            self.ended.wait(0.2 + pause_s)
        for connection in held:
            connection.close()

    def new(self, body: bytes) -> bytes:
        """A body with a new number in each of its texts. Made by one call, so that the attacker needs little time."""
        return body.replace(NUMBER, b"%09d" % next(self.number))


Attack = Callable[[Attacker], None]


def text(characters: int, end: object = "") -> str:
    """A text of so many characters."""
    filler = "the battery is good and bright " * (characters // 30 + 1)
    return f"screen {NUMBER.decode()} {end} {filler}"[:characters]


LONG_FORM = f"text={text(100_000).replace(' ', '+')}".encode()
LONG_LIVE = json.dumps({"text": text(100_000)}).encode()
SHORT_LIVE = json.dumps({"text": text(60)}).encode()
LONG_BATCH = json.dumps({"texts": [text(99_000, number) for number in range(41)]}).encode()
SHORT_BATCH = json.dumps({"texts": [text(60, number) for number in range(1_000)]}).encode()
ROWS = json.dumps({"feedback": [{"text": text(4_000, n), "label": "Positive"} for n in range(1_000)]}).encode()
NEAR_MISSES = json.dumps({"feedback": [{f"tex{n % 7}{n}": 1 for n in range(8)} for _ in range(990)]}).encode()


def try_page_now_and_then(attacker: Attacker) -> None:
    """Try: 100,000 characters every 3 s"""
    attacker.keep_sending(1, lambda _: attacker.send("POST /console/try", attacker.new(LONG_FORM), FORM), 3.0)


def try_page_without_pause(attacker: Attacker) -> None:
    """Try: 100,000 characters, 8 at a time"""
    attacker.keep_sending(8, lambda _: attacker.send("POST /console/try", attacker.new(LONG_FORM), FORM))


def long_batches(attacker: Attacker) -> None:
    """batch: 41 texts of 99,000 characters"""
    attacker.keep_sending(1, lambda _: attacker.send("POST /predict/batch", attacker.new(LONG_BATCH)))


def batches_of_short_texts(attacker: Attacker) -> None:
    """batch: 1,000 short texts, 8 at a time"""
    attacker.keep_sending(8, lambda _: attacker.send("POST /predict/batch", attacker.new(SHORT_BATCH)))


def long_live_texts(attacker: Attacker) -> None:
    """live: 100,000 characters, 16 at a time"""
    attacker.keep_sending(16, lambda _: attacker.send("POST /predict/live", attacker.new(LONG_LIVE)))


def live_from_many_addresses(attacker: Attacker) -> None:
    """live: short texts from 127.0.0.2 to .65, 64 at a time"""

    def send(caller: int) -> None:
        attacker.send("POST /predict/live", attacker.new(SHORT_LIVE), source=f"127.0.0.{2 + caller}")

    attacker.keep_sending(64, send)


def near_miss_names(attacker: Attacker) -> None:
    """feedback: 90 kB, 8,000 names that are nearly right"""
    attacker.keep_sending(2, lambda _: attacker.send("POST /feedback", NEAR_MISSES))


def feedback_flood(attacker: Attacker) -> None:
    """feedback: 1,000 rows of 4 kB, 4 at a time"""
    attacker.keep_sending(4, lambda _: attacker.send("POST /feedback", attacker.new(ROWS)))


def unfinished_sign_ins(attacker: Attacker) -> None:
    """4,200 unfinished sign-ins"""
    attacker.hold(4_200, unfinished("/console/sign-in", 1_000, 10))


def unfinished_forms(attacker: Attacker) -> None:
    """200 unfinished forms of 4 MiB"""
    attacker.hold(200, unfinished("/console/promote", BODY_BYTES, BODY_BYTES - 10))


def unfinished(path: str, declared: int, sent: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {declared}\r\n{FORM}\r\n".encode() + b"a" * sent


def encoded_form(attacker: Attacker) -> None:
    """a percent-encoded form of 4 MiB"""
    body = b"key=" + b"%41" * ((BODY_BYTES - 10) // 3)
    attacker.keep_sending(1, lambda _: attacker.send("POST /console/sign-in", body, FORM))


def progress_streams(attacker: Attacker) -> None:
    """64 progress streams"""
    attacker.hold(64, b"GET /console/progress HTTP/1.1\r\nHost: localhost\r\n\r\n")


def wrong_keys(attacker: Attacker) -> None:
    """wrong keys, 8 at a time"""

    def send(_: int) -> None:
        key = f"sentiment_{next(attacker.number)}"
        attacker.send("GET /models", b"", f"X-API-Key: {key}\r\n")
        attacker.send("POST /console/sign-in", f"key={key}".encode(), FORM)

    attacker.keep_sending(8, send)


def no_host(attacker: Attacker) -> None:
    """POST without Host, 4 at a time"""
    form_type = "Content-Type: application/x-www-form-urlencoded\r\nOrigin: http://a\r\n"
    data = f"POST /console/try HTTP/1.1\r\nConnection: close\r\nContent-Length: 6\r\n{form_type}\r\ntext=a"
    attacker.keep_sending(4, lambda _: attacker.exchange(data.encode()))


def short_deadlines(attacker: Attacker) -> None:
    """live: 3 ms to answer, or the client leaves, 8 at a time"""

    def send(caller: int) -> None:
        body = attacker.new(json.dumps({"text": text(2_000)}).encode())
        if caller % 2:
            attacker.send("POST /predict/live", body, f"{JSON}X-Request-Timeout-Ms: 3\r\n")
            return
        head = f"POST /predict/live HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{JSON}\r\n"
        with suppress(OSError), attacker.connect() as connection:
            connection.sendall(head.encode() + body)
            time.sleep(0.06)
        attacker.outcomes["left"] += 1

    attacker.keep_sending(8, send)


def long_heads(attacker: Attacker) -> None:
    """heads of 60 kB that do not end, 500 at a time"""
    attacker.hold(500, b"GET / HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"a" * 60_000)


ATTACKS: Sequence[tuple[str, Attack]] = (
    (OPEN, try_page_now_and_then),
    (OPEN, try_page_without_pause),
    (OPEN, long_batches),
    (OPEN, batches_of_short_texts),
    (OPEN, long_live_texts),
    (OPEN, live_from_many_addresses),
    (OPEN, near_miss_names),
    (OPEN, feedback_flood),
    (OPEN, progress_streams),
    (OPEN, no_host),
    (OPEN, short_deadlines),
    (OPEN, long_heads),
    (KEYS, unfinished_sign_ins),
    (KEYS, unfinished_forms),
    (KEYS, encoded_form),
    (KEYS, wrong_keys),
)
"""What the gateway asks of those without a key, and what is done to it."""


@dataclass(frozen=True)
class Seen:
    """What an attack did."""

    name: str
    before_ms: list[float]
    during_ms: list[float]
    failures: dict[str, int]
    """Of the victim's requests during the attack, by what came instead of an answer."""
    memory_mib: float
    peak_mib: float
    outcomes: dict[str, int]
    moved: bool

    def row(self) -> list[str]:
        median, tail, usual = self.median(self.during_ms), self.p99(self.during_ms), self.median(self.before_ms)
        return [
            self.name,
            f"{usual:.1f} / {self.p99(self.before_ms):.1f}",
            f"{median:.1f} / {tail:.1f}",
            f"{tail / usual:.1f}",
            ", ".join(f"{count} {outcome}" for outcome, count in self.failures.items()) or "-",
            f"{self.memory_mib:.0f} / {self.peak_mib:.0f}",
            ", ".join(f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items()) if count),
            "moved" if self.moved else "-",
        ]

    @staticmethod
    def median(taken: Sequence[float]) -> float:
        return statistics.median(taken)

    @staticmethod
    def p99(taken: Sequence[float]) -> float:
        return sorted(taken)[min(len(taken) - 1, int(0.99 * len(taken)))]


COLUMNS = (
    "attack",
    "live median / p99 without, ms",
    "with",
    "p99 with : median without",
    "live failed",
    "gateway MiB before / peak",
    "attacker's requests",
    "version",
)


@dataclass
class Target:
    """A pipeline that serves, and the key of the client that is not the attacker."""

    served: Served
    key: str
    nice: int = 0
    """Of the attacker's threads. 19 leaves the pipeline the processor, as an attacker on another machine does."""

    def attack(self, attack: Attack, seconds: float) -> Seen:
        """Attack for so long, and for as long before look how the victim does."""
        time.sleep(min(2.0, seconds / 4))  # what the attack before has left
        before = self._victim(seconds).communicate()[0]
        deployed = self.served.repository.deployed()
        attacker = Attacker(self.served.port)
        thread = threading.Thread(target=self._run, args=(attack, attacker), daemon=True)
        memory = peak = self._memory_mib()
        # It is there before the attack: the first request of one that comes later may meet runs that have begun.
        with self._victim(seconds + LEAD_S) as victim:
            time.sleep(LEAD_S)
            thread.start()
            while victim.poll() is None:
                peak = max(peak, self._memory_mib())
                time.sleep(0.05)
            during = victim.communicate()[0]
        attacker.ended.set()
        thread.join(30)
        found = json.loads(during)
        moved = self.served.repository.deployed() != deployed
        name = (attack.__doc__ or "").strip()
        return Seen(
            name,
            json.loads(before)["taken_ms"],
            found["taken_ms"],
            found["failures"],
            memory,
            peak,
            dict(attacker.outcomes),
            moved,
        )

    def _run(self, attack: Attack, attacker: Attacker) -> None:
        os.setpriority(os.PRIO_PROCESS, 0, self.nice)  # of this thread, on Linux, and of those it starts
        attack(attacker)

    def turn(self) -> None:
        """Have the other version serve, so that the next attack meets one that is being watched."""
        other = 3 - (self.served.repository.deployed() or 1)
        answer = self.served.ask("POST", f"/models/{other}/promote")
        if not answer.is_success:
            print(f"promotion: {answer.status_code} {answer.text[:200]}", file=sys.stderr)

    def _victim(self, seconds: float) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.attack_victim", str(self.served.port), self.key, str(seconds)],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
        )

    def _memory_mib(self) -> float:
        assert self.served.process is not None
        return float(psutil.Process(self.served.process.pid).memory_info().rss / 2**20)


@contextmanager
def attacked(directory: Path, bundle: Path, access: str, code: Path = PROJECT) -> Iterator[Target]:
    """Serve two versions of a bundle by the code in a directory, during the block."""
    served = make_served(directory, bundle, versions=2, SENTIMENT_ACCESS=access)
    if not (code / "common" / "home.py").exists():  # older code knows no such setting, and runs where it is started
        served.environment = {name: value for name, value in served.environment.items() if name != HOME}

    def command(*arguments: str) -> list[str]:
        return [sys.executable, str(code / "app.py"), *arguments]

    served.command = command  # type: ignore[method-assign]
    added = served.app("keys", "add", "victim", "--scope", "predict")
    assert added.returncode == 0, added.stderr
    served.start()
    try:
        yield Target(served, added.stdout.strip().splitlines()[-1])
    finally:
        served.stop()


def main(arguments: Sequence[str]) -> int:
    """Run the attacks and print the table; returns the exit status, 1 if a version was moved."""
    options = _parser().parse_args(arguments)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen: list[Seen] = []
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="sentiment-attacks-", ignore_cleanup_errors=True) as directory:
        bundle = options.bundle or _packaged(Path(directory) / "model")
        for access in (OPEN, KEYS):
            chosen = [
                attack
                for its_access, attack in ATTACKS
                if its_access == access and (not options.only or attack.__name__ in options.only)
            ]
            if not chosen:
                continue
            (Path(directory) / access).mkdir()
            with attacked(Path(directory) / access, bundle, access, options.code) as target:
                target.nice = options.nice
                for attack in chosen:
                    target.turn()
                    seen.append(target.attack(attack, options.seconds))
                    print(f"| {' | '.join(seen[-1].row())} |", flush=True)
    return int(any(one.moved for one in seen))


def _packaged(directory: Path) -> Path:
    """The packaged encoder with an untrained head, in each precision, as a version's directory."""
    from benchmarks.models import make_model

    directory.mkdir()
    return make_model("packaged", directory, lambda _: None).directory


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.attacks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack (default: %(default)g)")
    parser.add_argument("--only", nargs="*", help="names of the attacks' functions (default: all)")
    parser.add_argument("--nice", type=int, default=0, help="19: the attacker leaves the pipeline the processor")
    parser.add_argument("--bundle", type=Path, help="a version's directory (default: the packaged encoder is made one)")
    parser.add_argument("--code", type=Path, default=PROJECT, help="checkout whose app.py serves (default: this one)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
