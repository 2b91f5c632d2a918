"""What goes on beside a soak's load: promotions, canaries, retrainings, bulk scoring, and a database that goes away."""

import contextlib
import csv
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx

from tests.e2e.chaos.load import Asked
from tests.e2e.chaos.target import Target
from tests.lifecycle.learning import labelled

AWAY_S = 10.0
AFTER_S = 10.0
"""After its start, in which the pipeline may still say that it cannot use the database."""
OUTAGES = (0.35, 0.65)
"""When the database goes away, as parts of the time."""
RETRAININGS = (0.1, 0.5)
BULK_ROWS = 2_000
PROMOTION_S = 60.0
BULK = "bulk"


@dataclass
class Beside:
    """Does things to a pipeline at their times, one after the other but for bulk scoring; remembers what came of it."""

    target: Target
    seconds: float
    promotions: list[float] = field(default_factory=list)
    """Seconds since the beginning."""
    canaries: int = 0
    away: list[tuple[float, float]] = field(default_factory=list)
    """From when until when the database was away, by `time.monotonic`."""
    retrainings: list[int] = field(default_factory=list)
    """Their jobs."""
    trained: list[tuple[float, float]] = field(default_factory=list)
    """From when until when one ran, by `time.monotonic`."""
    scored: list[Asked] = field(default_factory=list)
    """Rows of bulk scoring that have not been compared yet."""
    rows: int = 0
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Plan: a promotion every half past a minute, then a canary that the next promotion ends."""
        minutes = range(int(self.seconds // PROMOTION_S))
        plan: list[tuple[float, Callable[[], None]]] = [
            (0.5 * PROMOTION_S + n * PROMOTION_S, self._promote) for n in minutes
        ]
        plan += [(0.75 * PROMOTION_S + n * PROMOTION_S, self._begin_canary) for n in minutes]
        # At full minutes, apart from both.
        plan += [(PROMOTION_S * round(part * self.seconds / PROMOTION_S), self._lose_database) for part in OUTAGES]
        plan += [(part * self.seconds, self._retrain) for part in RETRAININGS]
        self._plan = sorted(plan, key=lambda step: step[0])
        self._began = time.monotonic()
        self._ended = threading.Event()
        self._threads = ThreadPoolExecutor(2, "beside")
        self._running: list[Future[None]] = [self._threads.submit(self._follow_plan), self._threads.submit(self._score)]

    def end(self) -> None:
        """Wait for what is under way, and for the retrainings."""
        self._ended.set()
        for future in self._running:
            future.result()
        self._threads.shutdown()
        for job in self.retrainings:
            with self._noting():
                found = self._job(job)
                while found["ended_at"] is None:
                    time.sleep(1)
                    found = self._job(job)
                offset = time.monotonic() - time.time()
                since, until = (datetime.fromisoformat(str(found[name])) for name in ("created_at", "ended_at"))
                self.trained.append((since.timestamp() + offset, until.timestamp() + offset))
                assert found["state"] in ("succeeded", "rejected"), (
                    f"retraining {job} {found['state']}: {found['error']}"
                )

    def was_away(self, item: Asked) -> bool:
        """Return whether the database was away during some of the request."""
        return any(item.sent < until + AFTER_S and item.ended > since for since, until in self.away)

    def was_training(self, sent: float) -> bool:
        """Return whether a retraining ran when a request was sent; known after `end`."""
        return any(since <= sent < until for since, until in self.trained)

    def _follow_plan(self) -> None:
        for due, step in self._plan:
            if self._ended.wait(max(0.0, self._began + due - time.monotonic())):
                return
            with self._noting():
                step()

    def _promote(self) -> None:
        began = time.monotonic() - self._began
        self._ask(f"/models/{self.target.other()}/promote")
        self.promotions.append(began)

    def _begin_canary(self) -> None:
        self._ask(f"/models/{self.target.other()}/canary")
        self.canaries += 1

    def _retrain(self) -> None:
        answer = self.target.served.ask("POST", "/retrain")
        self.retrainings.append(int(answer.json()["id"]))

    def _ask(self, path: str) -> None:
        answer = self.target.served.ask("POST", path)
        assert answer.is_success, f"POST {path}: {answer.status_code} {answer.text}"

    def _lose_database(self) -> None:
        assert self.target.postgres is not None
        since = time.monotonic()
        self.away.append((since, float("inf")))  # at once: what is judged meanwhile is excused, too
        self.target.postgres.stop()
        time.sleep(AWAY_S)
        self.target.postgres.start()
        self.away[-1] = since, time.monotonic()

    def _job(self, job: int) -> dict[str, object]:
        found: dict[str, object] = self.target.served.ask("GET", f"/jobs/{job}").json()
        return found

    def _score(self) -> None:
        """Score a file each minute, with whatever is deployed then."""
        directory = self.target.directory
        texts = [text for text, _ in labelled(BULK_ROWS, seed=2)]
        write_texts(directory / "bulk.csv", texts)
        out = directory / "scored.csv"
        while not self._ended.wait(PROMOTION_S / 2):
            with self._noting():
                ended = self.target.served.app("score", str(directory / "bulk.csv"), "--out", str(out), "--overwrite")
                assert ended.returncode == 0, f"score ended with {ended.returncode}: {ended.stderr[-500:]}"
                with out.open(encoding="utf-8", newline="") as file:
                    rows = list(csv.DictReader(file))
                assert [row["text"] for row in rows] == texts, "score has not written the rows of its file"
                self.rows += len(rows)
                found = Asked(BULK, tuple(texts), 0.0, status=200, version=int(rows[0]["version"]))
                found.labels = [row["label"] for row in rows]
                found.scores = [float(row["score"]) for row in rows]
                self.scored.append(found)

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Remember a failure, and go on."""
        try:
            yield
        except (AssertionError, OSError, httpx.HTTPError, subprocess.SubprocessError) as error:
            self.failures.append(f"after {time.monotonic() - self._began:.0f} s: {error or type(error).__name__}")


def write_texts(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text",), *((text,) for text in texts)])
