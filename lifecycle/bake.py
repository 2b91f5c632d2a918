"""Watches a version in the time after its promotion, and goes back by itself where it does badly."""

import asyncio
import logging

from errors import PipelineError
from lifecycle.promotion import roll_back
from serving.triton_client import Statistics, TritonClient, TritonTimeoutError, TritonUnavailableError
from settings import Settings
from storage import deployments, events, jobs
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Deployment

LEAST_REQUESTS = 100
"""Before errors or latency count: one of ten slow requests tells nothing."""
LARGEST_FAILED_SHARE = 0.02
LARGEST_SLOWDOWN = 2.0
"""Of the mean time of a request inside Triton. More than the gate allows, for live requests change by themselves."""
UNANSWERED_CHECKS = 6
"""In a row, a look every ten seconds: a Triton that restarts is back sooner."""
_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class BakeWatch:
    """Looks at the version that bakes, when it is told to."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is looked at yet."""
        self._settings = settings
        self._unanswered = 0

    def look(self, database: Database) -> None:
        """Roll back where something is wrong; end the baking where its time is over."""
        with database.reading() as session:
            deployment = deployments.serving(session)
            time = now(session)
        if deployment is None or deployment.bakes_until is None:
            self._unanswered = 0
            return
        problem = self._problem(database, deployment)
        if problem:
            log.error("Version %d does badly: %s.", deployment.version, problem)
            try:
                roll_back(self._settings, database, f"in its bake time, {problem}")
            except PipelineError as error:
                log.error("It could not be rolled back: %s", error)
        elif time >= deployment.bakes_until:
            deployments.end_baking(database, deployment.id)
            with database.transaction() as session:
                message = f"Version {deployment.version} did well for {self._settings.bake_minutes:g} minutes."
                events.record(session, EventKind.BAKED, message, version=deployment.version)
            log.info("%s", message)

    def _problem(self, database: Database, deployment: Deployment) -> str:
        """What is wrong with a version that bakes; empty where nothing is."""
        check = jobs.last_ended(database, jobs.CHECK)
        is_of_it = check is not None and check.result.get("version") == deployment.version
        if check is not None and is_of_it and check.created_at >= deployment.started_at and check.result.get("stale"):
            return "a check found it stale: " + "; ".join(check.result["problems"])
        counted = asyncio.run(_counted(self._settings.triton_address, deployment.version))
        if counted is None:
            self._unanswered += 1
            return "it does not answer" if self._unanswered >= UNANSWERED_CHECKS else ""
        self._unanswered = 0
        return problem_of(counted, deployment)


def problem_of(counted: Statistics, deployment: Deployment) -> str:
    """What the counts say against a version; empty where they say nothing."""
    requests = counted.answered + counted.failed
    if requests < LEAST_REQUESTS:
        return ""
    if counted.failed / requests > LARGEST_FAILED_SHARE:
        return f"{counted.failed} of {requests} requests failed"
    before = deployment.baseline
    if before.get("answered", 0) >= LEAST_REQUESTS and counted.answered >= LEAST_REQUESTS:
        slowdown = counted.answered_ms / before["answered_ms"]
        if slowdown > LARGEST_SLOWDOWN:
            return f"a request takes {counted.answered_ms:.1f} ms, {slowdown:.1f} times as long as before"
    return ""


async def _counted(address: str, version: int) -> Statistics | None:
    client = TritonClient(address)
    try:
        return (await client.statistics(_TIMEOUT_S)).get(version)
    except (TritonUnavailableError, TritonTimeoutError):
        return None
    finally:
        await client.close()
