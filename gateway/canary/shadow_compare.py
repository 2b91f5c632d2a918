"""Compares both versions of a release on a share of the live texts, without delaying live requests."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from common.periodic import run_periodically
from gateway.monitoring.metrics import Metrics
from serving.client.errors import (
    NoRoomError,
    NotLoadedError,
    TextRefusedError,
    TritonTimeoutError,
    TritonUnavailableError,
)
from serving.client.replicas import Replicas
from serving.client.triton_client import Classification
from storage.releases import ALL, DifferingText, summed
from storage.tables import Figures, Release

MOST_TEXTS = 16
"""Maximum texts of a call, as in a call for live requests."""
MOST_WAITING = 64
"""Maximum texts that wait for comparison; further texts are skipped."""
TIME_SHARE = 0.02
"""Share of time spent on comparisons; the rest is for live requests, which may come at any moment."""
PAUSE_S = 10.0
"""Pause after a failed comparison."""
CALL_TIMEOUT_S = 5.0
MOST_SEEN = 100_000
"""Maximum text hashes kept, so that a text that is sent repeatedly counts once."""
MOST_DIFFERING = 100
"""Maximum differing texts kept until they are in the database."""
_BANDS = ((8, "up to 8 words"), (16, "9 to 16 words"), (32, "17 to 32 words"), (64, "33 to 64 words"))
_LONGEST = "over 64 words"

log = logging.getLogger(__name__)


class Findings:
    """One gateway's findings since its last database write; the database adds them to the release's figures."""

    def __init__(self) -> None:
        """Start with no findings."""
        self.figures: Figures = {}
        self.differing: list[DifferingText] = []

    def answered(self, texts: int) -> None:
        """Count texts that the challenger predicted, for clients or for comparison."""
        self._add(self.figures, answered=texts)
        self.figures["failed_in_a_row"] = 0

    def failed(self, texts: int) -> None:
        """Count texts that the challenger failed on and the champion predicted."""
        self._add(self.figures, failed=texts, failed_in_a_row=texts)

    def late(self, texts: int) -> None:
        """Count the challenger's timeouts. Callers can cause them, so the pipeline tests it with its own texts."""
        self._add(self.figures, late=texts)

    def compared(self, champion_ms: float, challenger_ms: float, largest_slowdown: float) -> None:
        """Count a call with the same texts that both versions completed."""
        slower = int(challenger_ms > largest_slowdown * champion_ms)
        self._add(self.figures, calls=1, slower=slower, champion_ms=champion_ms, challenger_ms=challenger_ms)

    def compare(self, text: str, champion: tuple[str, float], challenger: tuple[str, float]) -> bool:
        """Record both predictions, each a label and its score; return whether the labels differ."""
        differ = champion[0] != challenger[0]
        parts = self.figures.setdefault("parts", {})
        for name in (ALL, band_of(text)):
            self._add(
                parts.setdefault(name, {}),
                texts=1,
                differ=int(differ),
                champion=champion[1],
                challenger=challenger[1],
                squares=(challenger[1] - champion[1]) ** 2,
            )
        if differ and len(self.differing) < MOST_DIFFERING:
            self.differing.append(DifferingText(text, champion, challenger))
        return differ

    def put_back(self, taken: "Findings") -> None:
        """Put back findings that could not be written."""
        self.figures = summed(taken.figures, self.figures)
        self.differing = (taken.differing + self.differing)[:MOST_DIFFERING]

    def take(self) -> "Findings":
        """Return the findings and start anew."""
        taken = Findings()
        taken.figures, taken.differing = self.figures, self.differing
        self.figures, self.differing = {}, []
        return taken

    def _add(self, figures: Figures, **counted: float) -> None:
        for name, value in counted.items():
            figures[name] = figures.get(name, 0) + value


def band_of(text: str) -> str:
    """Return the length band of a text, in words."""
    words = len(text.split())
    return next((name for most, name in _BANDS if words <= most), _LONGEST)


@dataclass(eq=False, repr=False)
class Comparer:
    """Calls both versions with the same texts, one after the other. Create and use it within one event loop."""

    release: Release
    champion: Replicas
    challenger: Replicas
    findings: Findings
    share: float
    """Share of the offered texts to compare."""
    largest_slowdown: float
    metrics: Metrics
    _waiting: deque[str] = field(default_factory=deque, init=False)
    _seen: set[int] = field(default_factory=set, init=False)
    _has_some: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def offer(self, text: str) -> None:
        """Queue a predicted text for comparison, or skip it; each text is compared once."""
        if random.random() >= self.share or hash(text) in self._seen:
            return
        if len(self._waiting) >= MOST_WAITING:
            self.metrics.compared.labels("dropped").inc()
            return
        if len(self._seen) >= MOST_SEEN:
            self._seen.clear()
        self._seen.add(hash(text))
        self._waiting.append(text)
        self._has_some.set()

    async def run(self) -> None:
        """Compare queued texts until cancelled."""
        await run_periodically("shadow comparison", self._compare_next, longest_pause_s=PAUSE_S)

    async def _compare_next(self) -> None:
        await self._has_some.wait()
        texts = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TEXTS))]
        if not self._waiting:
            self._has_some.clear()
        started = time.perf_counter()
        try:
            is_done = await self._compare(texts)
        except (TritonUnavailableError, TritonTimeoutError, TextRefusedError, _OtherVersionError) as error:
            log.debug("Texts could not be compared: %s", error)
            is_done = False
        took_s = time.perf_counter() - started
        await asyncio.sleep(took_s * (1 / TIME_SHARE - 1) if is_done else PAUSE_S)

    async def _compare(self, texts: Sequence[str]) -> bool:
        """Call both versions with the texts; return whether both responded."""
        # In random order, because the second call finds the CPU caches as the first has left them.
        if random.random() < 0.5:
            champion, champion_ms = await self._ask(self.champion, texts, self.release.champion)
            asked = await self._ask_challenger(texts)
        else:
            asked = await self._ask_challenger(texts)
            champion, champion_ms = await self._ask(self.champion, texts, self.release.champion)
        # A failure counts against the challenger only if the champion succeeds.
        if asked is None:
            self.findings.failed(len(texts))
            return False
        challenger, challenger_ms = asked
        self.findings.answered(len(texts))
        self.findings.compared(champion_ms, challenger_ms, self.largest_slowdown)
        for position, text in enumerate(texts):
            differ = self.findings.compare(
                text,
                (champion.labels[position], champion.scores[position]),
                (challenger.labels[position], challenger.scores[position]),
            )
            self.metrics.compared.labels("different" if differ else "same").inc()
        return True

    async def _ask_challenger(self, texts: Sequence[str]) -> tuple[Classification, float] | None:
        """Return the challenger's result, or None if it failed."""
        try:
            return await self._ask(self.challenger, texts, self.release.version)
        except (NotLoadedError, NoRoomError, _OtherVersionError):
            raise  # Triton has just started or is full, or the release has just ended
        except TritonTimeoutError:
            self.findings.late(len(texts))
            raise
        except Exception as error:
            log.debug("The version on trial did not respond: %s", error)
            return None

    async def _ask(self, tritons: Replicas, texts: Sequence[str], version: int) -> tuple[Classification, float]:
        """Return a result of `version` and its duration in milliseconds, without the time in the queue.

        Queue time depends on live requests, and one version gets more of them than the other.
        """
        started = time.perf_counter()
        answer = await tritons.classify(texts, CALL_TIMEOUT_S)
        queue_s = answer.phases.queue_s if answer.phases is not None else 0.0
        took_ms = 1_000 * max(time.perf_counter() - started - queue_s, 0.0)
        if answer.version != version:
            raise _OtherVersionError(f"version {answer.version} responded, not {version}")
        return answer, took_ms


class _OtherVersionError(Exception):
    """Another version than the requested one responded, because the version is changing."""
