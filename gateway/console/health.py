"""The view Health: what serves, since when, and how it does at this moment."""

import asyncio
import logging
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from fastapi import Response
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.console.pulse import KEPT_S
from gateway.console.views import Visit, view
from gateway.deps import Loop, get_predictor
from gateway.health import why_not
from gateway.problems import StorageUnavailableError
from storage import deployments, jobs
from storage.api_keys import Scope

PATH = "/console/health"
DATABASE_WAIT_S = 3.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Deployed:
    """What the database knows of what serves."""

    version: int
    since: datetime
    reason: str
    bakes_until: datetime | None
    jobs: str
    """What the loop does now, or is about to; empty for nothing."""


async def show(visit: Visit) -> Response:
    """The page, or, for its script every two seconds, the part of it that changes."""
    predictor = get_predictor(visit.request)
    read = visit.loop.work.run(partial(_deployed, visit.loop))
    try:
        deployed, database_is_up = await asyncio.wait_for(read, DATABASE_WAIT_S), True
    except (asyncio.TimeoutError, StorageUnavailableError, PipelineError, SQLAlchemyError) as error:
        log.debug("The deployment cannot be read: %s", str(error).partition("\n")[0])
        deployed, database_is_up = None, False
    history = visit.console.pulse.history()
    context = {
        "why_not": "" if predictor.ready else why_not(predictor.failure),
        "deployed": deployed,
        "database_is_up": database_is_up,
        "now": visit.console.pulse.latest,
        "recent": visit.console.pulse.recent(),
        "chart": {
            "span": KEPT_S,
            "x": [round(at) for at, _ in history],
            "series": [
                {"name": "requests/s", "values": [round(step.requests_per_s, 1) for _, step in history]},
                {"name": "p99, ms", "scale": "ms", "values": [step.p99_ms for _, step in history]},
            ],
        },
    }
    return visit.part("_health.html", "health.html", context)


def _deployed(loop: Loop) -> Deployed | None:
    database = loop.storage.open()
    with database.reading() as session:
        serving = deployments.serving(session)
        doing = [f"{job.kind}: {job.step or 'begins'} (job {job.id})" for job in jobs.active(session)]
    if serving is None:
        return None
    return Deployed(serving.version, serving.started_at, serving.reason, serving.bakes_until, "; ".join(doing))


routes = [view("GET", PATH, Scope.READ, show)]
