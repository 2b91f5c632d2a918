"""Metrics about checks, jobs, releases and events, read from the database at each scrape in one transaction."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from common.settings import Settings
from storage import deployments, jobs, leases, releases
from storage.database import Database, now
from storage.tables import Event, FeedbackSource, Job, Mail

_CHECK_FIGURES = ("accuracy", "macro_f1", "calibration_error", "texts")
_ENDS = ("estimate", "low", "high")

Key = TypeVar("Key", bound=tuple[str, ...])


def loop_metrics(settings: Settings, database: Database) -> list[Metric]:
    """Return all metrics that come from the database.

    Raises:
        SQLAlchemyError: the database does not respond.
    """
    with database.reading() as session:
        time = now(session)
        return [
            *_check_metrics(session),
            *_estimate_metrics(session),
            *_drift_metrics(session),
            *_threshold_metrics(settings),
            *_job_metrics(session),
            *_outbox_metrics(session, time),
            *_other_metrics(session),
            *_release_metrics(session),
            *_lease_metrics(database),
        ]


def _check_metrics(session: Session) -> Iterator[Metric]:
    """Yield the results of the last completed check."""
    check = jobs.last_ended_in(session, jobs.CHECK)
    if check is None or check.ended_at is None:
        return
    yield _gauge("sentiment_check_timestamp_seconds", "End of the last check.", check.ended_at.timestamp())
    yield _gauge("sentiment_check_version", "Version that the last check evaluated.", check.result["version"])
    yield _gauge(
        "sentiment_check_stale", "1 if the last check found the deployed version stale.", check.result["stale"]
    )
    data_sets = {name: item for name, item in check.result.items() if isinstance(item, dict) and "accuracy" in item}
    for figure in _CHECK_FIGURES:
        text = f"{figure.replace('_', ' ').capitalize()} by data set."
        yield _family(
            f"sentiment_check_{figure}", text, ["data"], {(name,): item[figure] for name, item in data_sets.items()}
        )
    by_label = {(name, label): f1 for name, item in data_sets.items() for label, f1 in item["f1_by_label"].items()}
    yield _family("sentiment_check_f1", "F1 by data set and label.", ["data", "label"], by_label)


def _estimate_metrics(session: Session) -> Iterator[Metric]:
    """Yield the last check's estimates on live texts, if there were enough texts."""
    check = jobs.last_ended_in(session, jobs.CHECK)
    parts = check.result.get("live", {}).get("parts", {}) if check else {}
    if not parts:
        return
    texts = {(name,): part["texts"] for name, part in parts.items()}
    yield _family("sentiment_estimated_texts", "Live texts used for the estimates.", ["part"], texts)
    for figure in ("accuracy", "macro_f1"):
        text = f"Estimated {figure.replace('_', ' ')} on live texts."
        ends = {
            (name, end): value for name, part in parts.items() for end, value in zip(_ENDS, part[figure], strict=True)
        }
        yield _family(f"sentiment_estimated_{figure}", text, ["part", "end"], ends)


def _drift_metrics(session: Session) -> Iterator[Metric]:
    """Yield the last check's results for each kind of drift that had enough data."""
    check = jobs.last_ended_in(session, jobs.CHECK)
    kinds = check.result.get("drift", {}) if check else {}
    if not kinds:
        return
    alarms = {(kind,): bool(item["alarm"]) for kind, item in kinds.items()}
    yield _family("sentiment_drift_alarm", "1 if there is an alarm, by kind of drift.", ["kind"], alarms)
    text = "Size of the drift of labels, lengths or feedback, 0 to 1."
    distances = {(kind,): item["distance"] for kind, item in kinds.items() if "distance" in item}
    yield _family("sentiment_drift_distance", text, ["kind"], distances)
    text = "ROC AUC of live against known texts; 0.5 means alike."
    ends = {(end,): value for item in kinds.values() for end, value in zip(_ENDS, item.get("auc", ()), strict=False)}
    yield _family("sentiment_drift_text_auc", text, ["end"], ends)


def _threshold_metrics(settings: Settings) -> Iterator[Metric]:
    least = {("accuracy",): settings.min_accuracy, ("macro_f1",): settings.min_macro_f1}
    text = "Minimum below which the deployed version is stale."
    yield _family("sentiment_check_threshold", text, ["figure"], least)


def _job_metrics(session: Session) -> Iterator[Metric]:
    since = GaugeMetricFamily("sentiment_job_started_timestamp_seconds", "Start of the running job.", labels=["kind"])
    ended = CounterMetricFamily("sentiment_jobs_ended", "Ended jobs by result.", labels=["kind", "state"])
    last = GaugeMetricFamily(
        "sentiment_job_ended_timestamp_seconds", "Last time a job ended with this result.", labels=["kind", "state"]
    )
    waiting: dict[tuple[str, str], int] = {(kind, state): 0 for kind in jobs.KINDS for state in jobs.ACTIVE}
    query = select(Job.kind, Job.state, func.count(), func.max(Job.started_at), func.max(Job.ended_at))
    for kind, state, count, started_at, ended_at in session.execute(query.group_by(Job.kind, Job.state)):
        if (kind, state) in waiting:
            waiting[kind, state] = count
        elif ended_at is not None:
            ended.add_metric([kind, state], count)
            last.add_metric([kind, state], ended_at.timestamp())
        if state == jobs.RUNNING and started_at is not None:
            since.add_metric([kind], started_at.timestamp())
    yield _family("sentiment_jobs", "Queued and running jobs.", ["kind", "state"], waiting)
    yield from (since, ended, last)


def _outbox_metrics(session: Session, time: datetime) -> Iterator[Metric]:
    query = select(func.count(), func.min(Event.at)).join(Mail, Mail.event_id == Event.id).where(Mail.sent_at.is_(None))
    waiting, oldest = session.execute(query).one()
    yield _gauge("sentiment_outbox_mails", "Unsent mails.", waiting)
    age_s = (time - oldest).total_seconds() if oldest else 0.0
    yield _gauge("sentiment_outbox_oldest_age_seconds", "Age of the oldest unsent mail; 0 if there is none.", age_s)


def _other_metrics(session: Session) -> Iterator[Metric]:
    events = CounterMetricFamily("sentiment_events", "Events since the database was created, by kind.", labels=["kind"])
    for kind, count in session.execute(select(Event.kind, func.count()).group_by(Event.kind)):
        events.add_metric([kind], count)
    yield events
    rows, size = session.execute(select(func.sum(FeedbackSource.rows), func.sum(FeedbackSource.bytes))).one()
    yield _gauge("sentiment_feedback_rows", "Stored rows of feedback.", rows or 0)
    yield _gauge("sentiment_feedback_bytes", "Approximate size of the stored feedback.", size or 0)
    quarantined = select(func.count()).where(FeedbackSource.quarantined_at.is_not(None))
    yield _gauge(
        "sentiment_feedback_quarantined_sources", "Feedback sources in quarantine.", session.scalar(quarantined) or 0
    )
    deployment = deployments.serving(session)
    if deployment is not None:
        yield _gauge("sentiment_deployed_version", "The intended version.", deployment.version)
        yield _gauge(
            "sentiment_deployment_timestamp_seconds", "Time of its deployment.", deployment.started_at.timestamp()
        )
        is_monitored = deployment.monitored_until is not None
        yield _gauge("sentiment_deployment_monitored", "1 during its monitoring window.", is_monitored)


def _release_metrics(session: Session) -> Iterator[Metric]:
    """Yield the state of the running shadow or canary release."""
    release = releases.running(session)
    yield _gauge(
        "sentiment_release_version",
        "Version on trial; 0 if there is none.",
        release.version if release else 0,
    )
    if release is None:
        return
    yield _gauge("sentiment_release_share", "Its share of live texts, 0 to 1.", releases.share_of(release))
    parts = release.figures.get("parts", {})
    for name, figure, text in (
        ("sentiment_release_texts", "texts", "Texts that both versions classified, by length."),
        ("sentiment_release_differing_texts", "differ", "Texts with different labels."),
    ):
        yield _family(name, text, ["part"], {(part,): figures[figure] for part, figures in parts.items()})


def _lease_metrics(database: Database) -> Iterator[Metric]:
    holder = leases.holder_of(database, leases.SCHEDULER)
    yield _gauge("sentiment_scheduler_running", "1 if any host runs the scheduler.", holder is not None)
    here = holder is not None and leases.is_of_this_process(holder)
    yield _gauge("sentiment_scheduler_runs_here", "1 if this host runs the scheduler.", here)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _family(name: str, text: str, labels: Sequence[str], values: Mapping[Key, float]) -> Metric:
    """Return a gauge with one value for each combination of its `labels`."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for names, value in values.items():
        family.add_metric(names, value)
    return family
