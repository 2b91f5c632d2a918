"""Watches a version in the time after its promotion, and goes back by itself where it does badly.

Every gateway watches by its own calls: one of them that sees the version fail is enough, wherever the scheduler runs.
"""

import logging

from errors import PipelineError
from lifecycle.looking import look_repeatedly
from lifecycle.promotion import roll_back
from serving.call_statistics import CallStatistics, VersionStatistics
from settings import Settings
from storage import deployments, events, jobs
from storage.database import Database, now
from storage.events import EventKind
from storage.storage import Storage
from storage.tables import Deployment

INTERVAL_S = 10.0
"""Between two looks."""
LEAST_CALLS = 100
"""Before errors or latency count: one of ten slow calls tells nothing."""
LARGEST_FAILED_SHARE = 0.02
LARGEST_SLOWDOWN = 2.0
"""Of the median time of a lone call. More than the gate allows, for live texts change by themselves."""

log = logging.getLogger(__name__)


class BakeWatch:
    """Looks at the version that bakes."""

    def __init__(self, settings: Settings, statistics: CallStatistics) -> None:
        """Judge by `statistics`, of the gateway beside it."""
        self._settings = settings
        self._statistics = statistics

    async def watch(self, storage: Storage) -> None:
        """Look every `INTERVAL_S` seconds, until cancelled."""
        await look_repeatedly(self.look, storage, INTERVAL_S, "what bakes", log)

    def look(self, database: Database) -> None:
        """Roll back where something is wrong; end the baking where its time is over."""
        with database.reading() as session:
            deployment = deployments.serving(session)
            time = now(session)
        if deployment is None or deployment.bakes_until is None:
            return
        problem = _stale(database, deployment) or self._problem(deployment)
        if problem:
            log.error("Version %d does badly: %s.", deployment.version, problem)
            try:
                roll_back(self._settings, database, f"in its bake time, {problem}", deployment.version)
            except PipelineError as error:
                log.error("It could not be rolled back: %s", error)
        elif time >= deployment.bakes_until and deployments.end_baking(database, deployment.id):
            with database.transaction() as session:
                message = f"Version {deployment.version} did well for {self._settings.bake_minutes:g} minutes."
                events.record(session, EventKind.BAKED, message, version=deployment.version)
            log.info("%s", message)

    def _problem(self, deployment: Deployment) -> str:
        before = None if deployment.previous is None else self._statistics.of(deployment.previous)
        return problem_of(self._statistics.of(deployment.version), before)


def problem_of(counted: VersionStatistics, before: VersionStatistics | None) -> str:
    """What a version's calls say against it, beside those of the one before; empty where they say nothing."""
    calls = counted.answered + counted.failed
    if calls >= LEAST_CALLS and counted.failed / calls > LARGEST_FAILED_SHARE:
        return f"{counted.failed} of {calls} calls failed"
    if before is not None and min(counted.lone_calls, before.lone_calls) >= LEAST_CALLS:
        slowdown = counted.lone_ms / before.lone_ms
        if slowdown > LARGEST_SLOWDOWN:
            return f"a lone text takes {counted.lone_ms:.1f} ms, {slowdown:.1f} times as long as before"
    return ""


def _stale(database: Database, deployment: Deployment) -> str:
    """What the last check found, if it was of this version and since it serves; empty where that was good."""
    check = jobs.last_ended(database, jobs.CHECK)
    if check is None or check.result.get("version") != deployment.version:
        return ""
    if check.created_at < deployment.started_at or not check.result["stale"]:
        return ""
    return "a check found it stale: " + "; ".join(check.result["problems"])
