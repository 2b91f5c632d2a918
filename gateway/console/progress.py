"""How jobs and deployments go, told to whoever looks at it, by server-sent events (HTML standard, section 9.2)."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from fastapi import Response
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import StreamingResponse

from errors import PipelineError
from gateway.console.rendering import render
from gateway.console.views import Visit, view
from gateway.deps import Loop
from gateway.observing import PROGRESS_PATH
from gateway.problems import OverloadedError, StorageUnavailableError
from storage import deployments, jobs, releases
from storage.api_keys import Scope
from storage.tables import Job, Release

INTERVAL_S = 1.0
LONGEST_S = 300.0
"""Then the browser asks anew, with what its session allows by then."""
MOST_LISTENERS = 64
"""Each has the database read once a second."""
_RETRY_MS = 2_000
STEPS = ("collecting", "training", "exporting", "trying", "promoting")
"""Of a retraining, as the first words of what it says that it does."""


@dataclass(frozen=True)
class Doing:
    """A job, and how far it is."""

    job: Job
    since: datetime
    """When it began, or was asked for. Not how long: what changes every second takes buttons from under fingers."""
    step: int | None
    """Its position in `STEPS`."""


@dataclass(frozen=True)
class Progress:
    """What is under way, and what was last."""

    doing: list[Doing]
    deploying: list[int]
    """Versions that are being put in the place of what serves."""
    last: Job | None
    """The job that ended last."""
    deployed: int | None
    release: Release | None
    """What is being tried on live texts."""

    @property
    def state(self) -> str:
        """Names what the list of versions depends on."""
        last = (self.last.id, self.last.state) if self.last else ()
        tried = (self.release.id, self.release.step) if self.release else ()
        return hashlib.sha256(repr((self.deployed, self.deploying, last, tried)).encode()).hexdigest()[:16]


async def follow(visit: Visit) -> Response:
    """Tell of each change since the state that the page was made in, as long as somebody listens."""
    if visit.console.listeners >= MOST_LISTENERS:
        raise OverloadedError(LONGEST_S)
    return StreamingResponse(_events(visit), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _events(visit: Visit) -> AsyncIterator[str]:
    visit.console.listeners += 1
    try:
        async for event in _tell(visit):
            yield event
    finally:
        visit.console.listeners -= 1


async def _tell(visit: Visit) -> AsyncIterator[str]:
    yield f"retry: {_RETRY_MS}\n\n"
    ends_at = asyncio.get_running_loop().time() + LONGEST_S
    told, state = "", visit.request.query_params.get("state", "")
    while asyncio.get_running_loop().time() < ends_at and not visit.console.under_way.ending:
        try:
            progress = await visit.loop.work.run(lambda: read(visit.loop))
            html = render("_progress.html", {"progress": progress, "steps": STEPS, **visit.rights()})
        except (PipelineError, SQLAlchemyError, StorageUnavailableError):
            html = "<p>The database does not answer; what is under way is not known.</p>"
        else:
            if progress.state != state:
                yield "event: changed\ndata: versions\n\n"
            state = progress.state
        if html != told:
            told = html
            yield "event: progress\n" + "".join(f"data: {line}\n" for line in html.splitlines()) + "\n"
        await asyncio.sleep(INTERVAL_S)


def read(loop: Loop) -> Progress:
    """What is under way now."""
    with loop.storage.open().reading() as session:
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
