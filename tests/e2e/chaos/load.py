"""The load of a fault: callers who ask and tell at a steady pace, whatever they get, and remember it."""

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx

from common.errors import PipelineError
from serving.client.errors import TritonTimeoutError, TritonUnavailableError
from serving.client.triton_client import TritonClient
from tests.conftest import LABELS, SENTENCES
from tests.lifecycle.conftest import ADMIN_KEY
from tests.lifecycle.learning import GOOD

LIVE, BATCH, FEEDBACK, GRPC, CONSOLE = "live", "batch", "feedback", "gRPC", "console"
PAGES = ("versions", "health", "quality", "events", "label")
"""Of the console, one after the other."""
RATES = {LIVE: 20.0, BATCH: 2.0, FEEDBACK: 4.0}
"""Requests a second of each kind: open loop, so that a slow answer holds up nobody's next request."""
BATCH_TEXTS = 8
TIMEOUT_S = 40.0
"""Longer than any answer may take, so that one which never comes is seen as such."""
RETRY_STATUSES = (429, 503, 504)
"""Answers that mean "later", and have to say when."""

_WORDS = sorted({word.strip(".,;!").lower() for sentence in SENTENCES for word in sentence.split()} - {"—"})


@dataclass
class Asked:
    """A request and what came of it; times are those of `time.monotonic`."""

    kind: str
    texts: tuple[str, ...]
    sent: float
    ended: float = 0.0
    """0 while it is under way."""
    status: int = 0
    """0 where no answer came."""
    failure: str = ""
    """What was wrong with it as an answer, be it a refusal: no connection, or a problem that is not clear."""
    problem: str = ""
    """The last part of a problem's type."""
    version: int = 0
    labels: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether it got what it asked for, as far as the status tells."""
        return self.status in (200, 201)


class Load:
    """Asks `url` in a thread of its own between `start` and `stop`."""

    def __init__(self, url: str, rates: dict[str, float] = RATES) -> None:
        self.url = url
        self.asked: list[Asked] = []
        self._rates = rates
        self._draw = random.Random(5)
        self._count = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and wait for what is under way."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def since(self, time_: float) -> list[Asked]:
        """What was sent since then, under way or ended."""
        first = len(self.asked)
        while first and self.asked[first - 1].sent >= time_:
            first -= 1
        return self.asked[first:]

    def take_ended(self) -> list[Asked]:
        """The oldest, up to the first that is under way; they are remembered no more."""
        under_way = (place for place, item in enumerate(self.asked) if not item.ended)
        ended = self.asked[: next(under_way, len(self.asked))]
        del self.asked[: len(ended)]
        return ended

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        host, _, port = self.url.removeprefix("http://").partition(":")
        triton = TritonClient(f"{host}:{int(port) + 1}", cancels=True)
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, limits=limits, trust_env=False) as client,
            contextlib.AsyncExitStack() as ended,
        ):
            ended.push_async_callback(triton.close)
            if CONSOLE in self._rates:
                form, own = {"key": ADMIN_KEY, "next": "/"}, {"Sec-Fetch-Site": "same-origin"}
                signed_in = await client.post("/console/sign-in", data=form, headers=own)
                assert client.cookies, signed_in.text
            requests: set[asyncio.Task[None]] = set()
            due = {kind: time.monotonic() for kind in self._rates}
            while not self._ended.is_set():
                for kind, rate in self._rates.items():
                    if time.monotonic() >= due[kind]:
                        due[kind] += self._draw.expovariate(rate)
                        task = asyncio.create_task(self._ask(client, triton, kind))
                        requests.add(task)
                        task.add_done_callback(requests.discard)
                await asyncio.sleep(max(0.0, min(due.values(), default=time.monotonic() + 0.1) - time.monotonic()))
            await asyncio.gather(*requests)

    async def _ask(self, client: httpx.AsyncClient, triton: TritonClient, kind: str) -> None:
        texts = tuple(self._text() for _ in range(BATCH_TEXTS if kind == BATCH else 1))
        asked = Asked(kind, texts, time.monotonic())
        self.asked.append(asked)
        try:
            if kind == GRPC:
                found = await triton.classify(texts, TIMEOUT_S)
                asked.status, asked.version = 200, found.version
                asked.labels, asked.scores = found.labels, found.scores
            elif kind == CONSOLE:
                page = await client.get(f"/console/{PAGES[self._count % len(PAGES)]}")
                asked.status = page.status_code
                asked.failure = "" if "</html>" in page.text else "no whole page"
            else:
                path, body = _request(kind, texts)
                _read(await client.post(path, json=body), asked)
        except (PipelineError, TritonUnavailableError, TritonTimeoutError) as error:
            asked.failure = str(error)
        except httpx.TimeoutException:
            asked.failure = "no answer"
        except httpx.TransportError:
            asked.failure = "no connection"
        finally:
            asked.ended = time.monotonic()

    def _text(self) -> str:
        """One that nobody asked before, so that the cache hides nothing."""
        self._count += 1
        return f"{' '.join(self._draw.choices(_WORDS, k=self._draw.randint(2, 12)))} {self._count}"


def _request(kind: str, texts: Sequence[str]) -> tuple[str, object]:
    if kind == LIVE:
        return "/predict/live", {"text": texts[0]}
    if kind == BATCH:
        return "/predict/batch", {"texts": texts}
    # As the data that a retraining has (`tests.lifecycle.learning`) would have it.
    return "/feedback", {"text": texts[0], "label": LABELS[any(word in texts[0] for word in GOOD)]}


def _read(answer: httpx.Response, asked: Asked) -> None:
    asked.status = answer.status_code
    if answer.status_code == 201:
        return
    if answer.status_code == 200:
        predictions = answer.json()["predictions"]
        asked.version = int(answer.headers["x-model-version"])
        asked.labels = list(predictions["label"].values())
        asked.scores = list(predictions["score"].values())
        return
    if answer.headers.get("content-type") != "application/problem+json":
        asked.failure = f"{answer.status_code} without a problem"
        return
    asked.problem = answer.json()["type"].rpartition(":")[2]
    if answer.status_code == 500:
        asked.failure = "500"
    elif answer.status_code in RETRY_STATUSES and "retry-after" not in answer.headers:
        asked.failure = f"{answer.status_code} {asked.problem} without Retry-After"
