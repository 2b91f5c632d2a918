"""Streams the progress of jobs and deployments to open pages, by server-sent events (HTML standard, section 9.2)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

from fastapi import Response
from sqlalchemy import select
from starlette.responses import StreamingResponse
from starlette.types import Receive, Send
from starlette.types import Scope as RequestScope

from gateway.console.page import PageRequest, view
from gateway.console.rendering import render
from gateway.http.callers import caller_of
from gateway.http.problems import OverloadedError, StorageUnavailableError
from gateway.monitoring.request_log import PROGRESS_PATH
from gateway.routes.context import AppContext
from storage import deployments, jobs, releases
from storage.api_keys import Scope
from storage.tables import Job, Release

INTERVAL_S = 1.0
LONGEST_S = 300.0
"""Maximum seconds of a stream. The browser then reconnects, and its session is checked again."""
MOST_LISTENERS = 64
"""Maximum concurrent streams; each reads the database once a second."""
MOST_OF_CALLER = 8
"""Maximum streams of one caller (a key, or an address without a key)."""
_RETRY_MS = 2_000
STEPS = ("collecting", "training", "exporting", "testing", "promoting")
"""Steps of a retraining: the beginnings of the step descriptions of its job."""


@dataclass(frozen=True)
class Doing:
    """A queued or running job with its progress."""

    job: Job
    since: datetime
    """When the job started, or was requested. The elapsed time would redraw the page's buttons every second."""
    step: int | None
    """Position in `STEPS`; None if the job is no retraining or is at none of these steps."""


@dataclass(frozen=True)
class Progress:
    """The active jobs, deployments and release, and the last job."""

    doing: list[Doing]
    deploying: list[int]
    """Versions that are being deployed."""
    last: Job | None
    """The job that ended last."""
    deployed: int | None
    release: Release | None
    """The running shadow or canary release."""

    @property
    def held(self) -> str:
        """Why the release is held at its step until an admin decides; empty if it is not held."""
        return releases.held_because(self.release) if self.release else ""

    @property
    def state(self) -> str:
        """A hash that changes when the list of versions must be reloaded."""
        last = (self.last.id, self.last.state) if self.last else ()
        tried = (self.release.id, self.release.step, self.held) if self.release else ()
        return hashlib.sha256(repr((self.deployed, self.deploying, last, tried)).encode()).hexdigest()[:16]


async def follow(page_request: PageRequest) -> Response:
    """Stream the progress, and each change of the state that the page shows, until the client disconnects."""
    listeners = page_request.app.listeners
    caller = caller_of(page_request.request.scope)
    if listeners[caller] >= MOST_OF_CALLER or listeners.total() >= MOST_LISTENERS:
        raise OverloadedError(LONGEST_S)
    listeners[caller] += 1

    def leave() -> None:
        listeners[caller] -= 1
        if not listeners[caller]:
            del listeners[caller]

    return _Stream(_tell(page_request), leave)


class _Stream(StreamingResponse):
    """A response of server-sent events."""

    def __init__(self, events: AsyncIterator[str], leave: Callable[[], None]) -> None:
        """Send `events`, and call `leave` when the stream has ended for any reason."""
        super().__init__(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})
        self._leave = leave

    async def __call__(self, scope: RequestScope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _tell(page_request: PageRequest) -> AsyncIterator[str]:
    yield f"retry: {_RETRY_MS}\n\n"
    ends_at = asyncio.get_running_loop().time() + LONGEST_S
    sent, state = "", page_request.request.query_params.get("state", "")
    while asyncio.get_running_loop().time() < ends_at and not page_request.app.under_way.ending:
        try:
            progress = await page_request.app.work.run(lambda: read(page_request.app))
            html = render("_progress.html", {"progress": progress, "steps": STEPS, **page_request.rights()})
        except StorageUnavailableError:
            html = "<p>The database does not respond; the progress of jobs is unknown.</p>"
        else:
            if progress.state != state:
                yield "event: changed\ndata: versions\n\n"
            state = progress.state
        if html != sent:
            sent = html
            yield "event: progress\n" + "".join(f"data: {line}\n" for line in html.splitlines()) + "\n"
        await asyncio.sleep(INTERVAL_S)


def read(app: AppContext) -> Progress:
    """Read the current progress from the database."""
    with app.storage.open().reading() as session:
        serving = deployments.serving(session)
        return Progress(
            [_doing(job) for job in jobs.active(session)],
            [intention.version for intention in deployments.intended(session)],
            session.scalars(select(Job).where(Job.ended_at.is_not(None)).order_by(Job.ended_at.desc())).first(),
            serving.version if serving else None,
            releases.running(session),
        )


def _doing(job: Job) -> Doing:
    step = next((index for index, name in enumerate(STEPS) if job.step.startswith(name)), None)
    return Doing(job, job.started_at or job.created_at, step if job.kind == jobs.RETRAIN else None)


routes = [view("GET", PROGRESS_PATH, Scope.READ, follow)]
