"""Monitors the deployed version during the monitoring window after its promotion, and rolls it back if it is at fault.

Failed or slow live calls only raise a suspicion, because callers can influence both. Two measurements that callers
cannot influence decide: a probe with the pipeline's own texts (`probe.py`), and a speed comparison without live traffic
(`speed.py`). Each gateway monitors its own calls. A fault found by one gateway is enough, wherever the scheduler runs.
"""

import logging
import time
from contextlib import suppress
from datetime import datetime, timedelta

from common.clock import Elapsed
from common.errors import PipelineError
from common.settings import Settings
from lifecycle.deployment.probe import LARGEST_FAILED_SHARE, Probing
from lifecycle.deployment.promotion import roll_back
from lifecycle.deployment.speed import why_slower
from lifecycle.gates.evaluation_data import Results, shortfalls
from serving.client import addresses
from serving.client.call_statistics import CallStatistics, VersionStatistics
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage import deployments, events, jobs
from storage.database import Database, now
from storage.events import EventKind
from storage.tables import Deployment, Job

INTERVAL_S = 10.0
"""Seconds between two evaluations."""
PROBE_INTERVAL_S = 60.0
"""Seconds between two probes while there is no suspicion."""
LEAST_FAILURES = 5
"""Minimum number of failed live calls for a suspicion."""
LEAST_CALLS = 100
"""Minimum number of lone calls of each version for a suspicion of slowness."""
LARGEST_SLOWDOWN = 2.0
"""Highest accepted ratio to the previous version's times, of live lone calls and in the comparison without traffic."""
_CHECKS_BACK = 200
"""Number of newest checks among which the last one of the previous version is searched."""

log = logging.getLogger(__name__)


class PostDeployMonitor:
    """Evaluates the deployed version during its monitoring window."""

    def __init__(self, settings: Settings, statistics: CallStatistics) -> None:
        """Create a monitor that reads the call `statistics` of the gateway in this process."""
        self._settings = settings
        self._statistics = statistics
        self._term: int | None = None
        """ID of the monitored deployment. A version that is deployed again gets another one."""
        self._probing: Probing | None = None
        self._probed_at = float("-inf")
        self._elapsed = Elapsed()

    def look(self, database: Database) -> None:
        """Roll back if the version is at fault; end the monitoring window if its time is over.

        Raises:
            PipelineError: the addresses of the Tritons cannot be found.
        """
        with database.reading() as session:
            deployment = deployments.serving(session)
            time_ = now(session)
        if deployment is None or deployment.monitored_until is None:
            self._term = None
            return
        if deployment.id != self._term:
            # Calls and probes during an earlier deployment of the same version do not count.
            self._term = deployment.id
            self._probing, self._probed_at = Probing(deployment.version), float("-inf")
        window_s = (deployment.monitored_until - deployment.started_at).total_seconds()
        elapsed_s = self._elapsed.seconds(deployment.id, (time_ - deployment.started_at).total_seconds())
        began = time_ - timedelta(seconds=elapsed_s)  # by the clock as it is now
        counted = self._statistics.of(deployment.version, time.monotonic() - elapsed_s)
        problem = (
            _stale(self._settings, database, deployment, began)
            or self._failure(database, deployment, began, counted)
            or self._slowness(database, deployment, began, counted)
        )
        if problem:
            log.error("Version %d is at fault: %s.", deployment.version, problem)
            try:
                roll_back(self._settings, database, f"in the monitoring window, {problem}", deployment.version)
            except PipelineError as error:
                log.error("Version %d could not be rolled back: %s", deployment.version, error)
        elif elapsed_s >= window_s and deployments.end_monitoring(database, deployment.id):
            with database.transaction() as session:
                message = (
                    f"Version {deployment.version} passed its monitoring window "
                    f"of {self._settings.monitor_minutes:g} minutes."
                )
                events.record(session, EventKind.MONITORED, message, version=deployment.version)
            log.info("%s", message)

    def _failure(self, database: Database, deployment: Deployment, began: datetime, counted: VersionStatistics) -> str:
        """Return how the version fails on the pipeline's own texts; empty if it does not."""
        assert self._probing is not None
        suspicion = suspicious_failures(counted)
        is_due = time.monotonic() - self._probed_at >= PROBE_INTERVAL_S
        if not (suspicion or is_due or self._probing.is_in_doubt):
            return ""
        self._probed_at = time.monotonic()
        problem = self._probing.confirm(addresses.find(self._settings.triton_address))
        if suspicion and problem == "":
            _report(database, deployment, began, "failures", f"{suspicion}, but it classifies the pipeline's own texts")
        return problem or ""

    def _slowness(self, database: Database, deployment: Deployment, began: datetime, counted: VersionStatistics) -> str:
        """Return how much slower than the previous version it is, measured without live traffic; empty if it is not."""
        if deployment.previous is None:
            return ""
        suspicion = suspicious_slowness(counted, self._statistics.of(deployment.previous))
        if not suspicion or _is_reported(database, deployment, began, "latency"):
            return ""
        problem = why_slower(self._settings, database, deployment.version, deployment.previous, LARGEST_SLOWDOWN)
        if problem:
            return problem
        why = (
            "this could not be measured without live traffic" if problem is None else "without live traffic it does not"
        )
        _report(database, deployment, began, "latency", f"{suspicion}, but {why}")
        return ""


def suspicious_failures(counted: VersionStatistics) -> str:
    """Return how many of a version's live calls failed in the model, if their share is high; else empty."""
    calls = counted.answered + counted.failed
    if counted.failed >= LEAST_FAILURES and counted.failed / calls > LARGEST_FAILED_SHARE:
        return f"the model failed {counted.failed} of {calls} live calls"
    return ""


def suspicious_slowness(counted: VersionStatistics, before: VersionStatistics) -> str:
    """Return how much longer than with the previous version lone live calls take, if the ratio is high; else empty."""
    if min(counted.lone_calls, before.lone_calls) >= LEAST_CALLS:
        slowdown = counted.lone_ms / before.lone_ms
        if slowdown > LARGEST_SLOWDOWN:
            return f"a lone text takes {counted.lone_ms:.1f} ms, {slowdown:.1f} times as long as before"
    return ""


def _stale(settings: Settings, database: Database, deployment: Deployment, began: datetime) -> str:
    """Return the problems found by the last check, if it checked this version in this deployment; else empty.

    A threshold that the previous version missed as well is no fault, because a rollback would not help.
    """
    check = jobs.last_ended(database, jobs.CHECK)
    if check is None or check.result.get("version") != deployment.version:
        return ""
    if check.created_at < began or not check.result["stale"]:
        return ""
    problems = check.result["problems"]
    if deployment.previous is not None and (found := _results(check)):
        problems = shortfalls(settings, found, _results_of(settings, database, deployment.previous))
    return "a check found it stale: " + "; ".join(problems) if problems else ""


def _results(check: Job) -> Results:
    return {name: check.result[name] for name in ("validation", "feedback") if name in check.result}


def _results_of(settings: Settings, database: Database, version: int) -> Results:
    """Return the results of the last check of a version, or else its metrics on the validation file at its export."""
    for check in jobs.ended_checks(database, _CHECKS_BACK):
        if check.result.get("version") == version:
            return _results(check)
    with suppress(PipelineError):
        metrics = Bundle.load(ModelRepository(settings.model_repository).version_directory(version)).metrics
        if metrics:
            return {"validation": metrics}
    return {}


def _is_reported(database: Database, deployment: Deployment, began: datetime, suspicion: str) -> bool:
    """Return whether any process reported the suspicion in this monitoring window."""
    reported = events.newest(database, 20, EventKind.SUSPECTED.value)
    return any(
        event.version == deployment.version and event.at >= began and event.figures.get("suspicion") == suspicion
        for event in reported
    )


def _report(database: Database, deployment: Deployment, began: datetime, suspicion: str, message: str) -> None:
    """Report a suspicion once per monitoring window, and that the version stays deployed."""
    if _is_reported(database, deployment, began, suspicion):
        return
    report = (
        f"Version {deployment.version} stays deployed: {message}. "
        "If clients see a fault nevertheless, roll back with `python app.py rollback` or in the console."
    )
    with database.transaction() as session:
        events.record(session, EventKind.SUSPECTED, report, {"suspicion": suspicion}, version=deployment.version)
    log.warning("%s", report)
