"""The view Health: the deployed model, since when it is deployed, and its current rates and latencies."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from fastapi import Response

from common.periodic import failing_tasks
from gateway.console.page import PageRequest, view
from gateway.http.problems import StorageUnavailableError
from gateway.monitoring.recent_rates import KEPT_S
from gateway.routes.context import AppContext
from gateway.routes.health import why_not
from storage import deployments, events, jobs
from storage.api_keys import Scope
from storage.tables import Event

PATH = "/console/health"
DATABASE_WAIT_S = 3.0


@dataclass(frozen=True)
class Deployed:
    """The database's record of the deployed model."""

    version: int
    since: datetime
    reason: str
    monitored_until: datetime | None
    jobs: list[tuple[str, int, str]]
    """Kind, number and step of each running or queued job."""
    data_unfit: Event | None
    """Why the data files cannot be used; None if they can."""


async def show(page_request: PageRequest) -> Response:
    """Show the page, or only the part that its script reloads every two seconds."""
    model = page_request.app.predictor.model
    read = page_request.app.work.run(partial(_deployed, page_request.app))
    try:
        deployed, database_is_up = await asyncio.wait_for(read, DATABASE_WAIT_S), True
    except (TimeoutError, StorageUnavailableError):
        deployed, database_is_up = None, False
    history = page_request.app.pulse.history()
    context = {
        "why_not": "" if model.ready else why_not(model.failure),
        "failing_tasks": [
            (failure.task, failure.since, page_request.app.settings.without_secrets(failure.error))
            for failure in failing_tasks()
        ],
        "deployed": deployed,
        "database_is_up": database_is_up,
        "now": page_request.app.pulse.latest,
        "recent": page_request.app.pulse.recent(),
        "chart": {
            "span": KEPT_S,
            "x": [round(at) for at, _ in history],
            "series": [
                {
                    "name": "requests",
                    "unit": "/s",
                    "axis": "requests per second",
                    "values": [round(step.requests_per_s, 1) for _, step in history],
                },
                {
                    "name": "99 % within",
                    "unit": "ms",
                    "axis": "99 % answered within (ms)",
                    "scale": "ms",
                    "values": [step.p99_ms for _, step in history],
                },
            ],
        },
    }
    return page_request.part("_health.html", "health.html", context)


def _deployed(app: AppContext) -> Deployed | None:
    database = app.storage.open()
    with database.reading() as session:
        serving = deployments.serving(session)
        doing = [(job.kind, job.id, job.step or "starting") for job in jobs.active(session)]
    if serving is None:
        return None
    unfit = events.data_unfit(database)
    return Deployed(serving.version, serving.started_at, serving.reason, serving.monitored_until, doing, unfit)


routes = [view("GET", PATH, Scope.READ, show)]
