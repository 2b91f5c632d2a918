"""Puts a share of the live texts to both versions of a release, beside what is answered and never in its way."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Sequence

from gateway.metrics import Metrics
from serving.replicas import Replicas
from serving.triton_client import Classification, NotLoadedError
from storage.releases import ALL, DifferingText, summed
from storage.tables import Figures, Release

MOST_TEXTS = 16
"""In a call, as in a call of live requests."""
MOST_WAITING = 64
"""Texts; when there are more, the newest are passed over."""
TIME_SHARE = 0.02
"""Of the time that both versions take for it; the rest is for live requests, which may come at any moment."""
PAUSE_S = 10.0
"""After a comparison that failed."""
CALL_TIMEOUT_S = 5.0
MOST_DIFFERING = 100
"""Texts that are kept until the database has them."""
_BANDS = ((8, "up to 8 words"), (16, "9 to 16 words"), (32, "17 to 32 words"), (64, "33 to 64 words"))
_LONGEST = "over 64 words"

log = logging.getLogger(__name__)


class Findings:
    """What one gateway has found since it last told the database, which adds it to the release's figures."""

    def __init__(self) -> None:
        """Nothing is found yet."""
        self.figures: Figures = {}
        self.differing: list[DifferingText] = []

    def answered(self, texts: int) -> None:
        """The challenger answered so many texts, for somebody or for comparison."""
        self._add(self.figures, answered=texts)
        self.figures["failed_in_a_row"] = 0

    def failed(self, texts: int) -> None:
        """It failed to, where the champion could."""
        self._add(self.figures, failed=texts, failed_in_a_row=texts)

    def compared(self, champion_ms: float, challenger_ms: float, largest_slowdown: float) -> None:
        """Both answered a call of the same texts."""
        slower = int(challenger_ms > largest_slowdown * champion_ms)
        self._add(self.figures, calls=1, slower=slower, champion_ms=champion_ms, challenger_ms=challenger_ms)

    def compare(self, text: str, champion: tuple[str, float], challenger: tuple[str, float]) -> bool:
        """Take both answers, each a label and its score; returns whether they differ."""
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
        """Take what was handed out, and could not be told."""
        self.figures = summed(taken.figures, self.figures)
        self.differing = (taken.differing + self.differing)[:MOST_DIFFERING]

    def take(self) -> "Findings":
        """Hand out what was found, and begin anew."""
        taken = Findings()
        taken.figures, taken.differing = self.figures, self.differing
        self.figures, self.differing = {}, []
        return taken

    def _add(self, figures: Figures, **counted: float) -> None:
        for name, value in counted.items():
            figures[name] = figures.get(name, 0) + value


def band_of(text: str) -> str:
    """How long a text is, in words."""
    words = len(text.split())
    return next((name for most, name in _BANDS if words <= most), _LONGEST)


class Comparer:
    """Asks both versions for the same texts, one call after the other; make and use it within one event loop."""

    def __init__(
        self,
        release: Release,
        champion: Replicas,
        challenger: Replicas,
        findings: Findings,
        share: float,
        largest_slowdown: float,
        metrics: Metrics,
    ) -> None:
        """Compare a `share` of what is offered."""
        self._release = release
        self._champion = champion
        self._challenger = challenger
        self._findings = findings
        self._share = share
        self._largest_slowdown = largest_slowdown
        self._compared = metrics.compared
        self._waiting: deque[str] = deque()
        self._has_some = asyncio.Event()

    def offer(self, text: str) -> None:
        """Take a text that was answered, or do not."""
        if random.random() >= self._share:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._compared.labels("dropped").inc()
            return
        self._waiting.append(text)
        self._has_some.set()

    async def run(self) -> None:
        """Compare what was taken, until cancelled."""
        while True:
            await self._has_some.wait()
            texts = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TEXTS))]
            if not self._waiting:
                self._has_some.clear()
            started = time.perf_counter()
            try:
                is_done = await self._compare(texts)
            except Exception as error:
                log.debug("Texts could not be compared: %s", error)
                is_done = False
            took_s = time.perf_counter() - started
            await asyncio.sleep(took_s * (1 / TIME_SHARE - 1) if is_done else PAUSE_S)

    async def _compare(self, texts: Sequence[str]) -> bool:
        """Put texts to both; returns whether both answered."""
        # In turns, for the second finds the processor's caches as the first has left them.
        if random.random() < 0.5:
            champion, champion_ms = await self._ask(self._champion, texts, self._release.champion)
            asked = await self._ask_challenger(texts)
        else:
            asked = await self._ask_challenger(texts)
            champion, champion_ms = await self._ask(self._champion, texts, self._release.champion)
        # A challenger is to blame for what the champion can do.
        if asked is None:
            self._findings.failed(len(texts))
            return False
        challenger, challenger_ms = asked
        self._findings.answered(len(texts))
        self._findings.compared(champion_ms, challenger_ms, self._largest_slowdown)
        for position, text in enumerate(texts):
            differ = self._findings.compare(
                text,
                (champion.labels[position], champion.scores[position]),
                (challenger.labels[position], challenger.scores[position]),
            )
            self._compared.labels("different" if differ else "same").inc()
        return True

    async def _ask_challenger(self, texts: Sequence[str]) -> tuple[Classification, float] | None:
        """Its answer; none where it failed."""
        try:
            return await self._ask(self._challenger, texts, self._release.version)
        except (NotLoadedError, _OtherVersionError):
            raise  # Triton has just started, or the release has just ended
        except Exception as error:
            log.debug("The version that is tried did not answer: %s", error)
            return None

    async def _ask(self, tritons: Replicas, texts: Sequence[str], version: int) -> tuple[Classification, float]:
        """An answer of `version`, and the milliseconds that it took, once its turn had come.

        How long it waits for that is the live requests' doing, of which one version has more than the other.
        """
        started = time.perf_counter()
        answer = await tritons.classify(texts, CALL_TIMEOUT_S)
        queue_s = answer.phases.queue_s if answer.phases is not None else 0.0
        took_ms = 1_000 * max(time.perf_counter() - started - queue_s, 0.0)
        if answer.version != version:
            raise _OtherVersionError(f"version {answer.version} answered, not {version}")
        return answer, took_ms


class _OtherVersionError(Exception):
    """What answers is not what was asked for: one version follows another at this moment."""
