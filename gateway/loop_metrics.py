"""What the database knows of the loop, as metrics: read when they are asked for, in one transaction."""

from collections.abc import Iterator
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from settings import Settings
from storage import deployments, jobs, leases, releases
from storage.database import Database, now
from storage.tables import Event, Feedback, Job, Mail

_CHECK_FIGURES = ("accuracy", "macro_f1", "calibration_error", "texts")


def loop_metrics(settings: Settings, database: Database) -> list[Metric]:
    """Every metric of the loop.

    Raises:
        SQLAlchemyError: the database cannot answer now.
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
    """Of the last check that came to a result."""
    check = jobs.last_ended_in(session, jobs.CHECK)
    if check is None or check.ended_at is None:
        return
    yield _gauge("sentiment_check_timestamp_seconds", "When the last check ended.", check.ended_at.timestamp())
    yield _gauge("sentiment_check_version", "The version that it asked.", check.result["version"])
    yield _gauge("sentiment_check_stale", "Whether it found what serves stale.", check.result["stale"])
    data_sets = {name: item for name, item in check.result.items() if isinstance(item, dict) and "accuracy" in item}
    for figure in _CHECK_FIGURES:
        family = GaugeMetricFamily(
            f"sentiment_check_{figure}", f"{figure.replace('_', ' ').capitalize()} by data set.", labels=["data"]
        )
        for name, item in data_sets.items():
            family.add_metric([name], item[figure])
        yield family
    by_label = GaugeMetricFamily("sentiment_check_f1", "F1 by data set and label.", labels=["data", "label"])
    for name, item in data_sets.items():
        for label, f1 in item["f1_by_label"].items():
            by_label.add_metric([name, label], f1)
    yield by_label


def _estimate_metrics(session: Session) -> Iterator[Metric]:
    """What the last check estimated of live texts, where there were enough."""
    check = jobs.last_ended_in(session, jobs.CHECK)
    parts = check.result.get("live", {}).get("parts", {}) if check else {}
    if not parts:
        return
    texts = GaugeMetricFamily("sentiment_estimated_texts", "Live texts that were estimated from.", labels=["part"])
    for name, part in parts.items():
        texts.add_metric([name], part["texts"])
    yield texts
    for figure in ("accuracy", "macro_f1"):
        told = figure.replace("_", " ")
        family = GaugeMetricFamily(
            f"sentiment_estimated_{figure}", f"Of live texts, {told} estimated without labels.", labels=["part", "end"]
        )
        for name, part in parts.items():
            for end, value in zip(("estimate", "low", "high"), part[figure], strict=True):
                family.add_metric([name, end], value)
        yield family


def _drift_metrics(session: Session) -> Iterator[Metric]:
    """What the last check found of each kind of drift that there was enough to tell of."""
    check = jobs.last_ended_in(session, jobs.CHECK)
    kinds = check.result.get("drift", {}) if check else {}
    if not kinds:
        return
    alarm = GaugeMetricFamily("sentiment_drift_alarm", "Whether there is an alarm, by kind of drift.", labels=["kind"])
    distance = GaugeMetricFamily(
        "sentiment_drift_distance", "How far labels, lengths or errors have moved, 0 to 1.", labels=["kind"]
    )
    area = GaugeMetricFamily(
        "sentiment_drift_text_auc", "How well live texts can be told from known ones; 0.5 is by chance.", labels=["end"]
    )
    for kind, item in kinds.items():
        alarm.add_metric([kind], bool(item["alarm"]))
        if "distance" in item:
            distance.add_metric([kind], item["distance"])
        for end, value in zip(("estimate", "low", "high"), item.get("auc", ()), strict=False):
            area.add_metric([end], value)
    yield from (alarm, distance, area)


def _threshold_metrics(settings: Settings) -> Iterator[Metric]:
    family = GaugeMetricFamily(
        "sentiment_check_threshold", "Under this, what serves is stale; a setting.", labels=["figure"]
    )
    family.add_metric(["accuracy"], settings.min_accuracy)
    family.add_metric(["macro_f1"], settings.min_macro_f1)
    yield family


def _job_metrics(session: Session) -> Iterator[Metric]:
    active = GaugeMetricFamily("sentiment_jobs", "Jobs that wait or run.", labels=["kind", "state"])
    since = GaugeMetricFamily(
        "sentiment_job_started_timestamp_seconds", "When the job that runs was begun.", labels=["kind"]
    )
    ended = CounterMetricFamily("sentiment_jobs_ended", "Jobs by how they ended.", labels=["kind", "state"])
    last = GaugeMetricFamily(
        "sentiment_job_ended_timestamp_seconds", "When a job last ended so.", labels=["kind", "state"]
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
    for key, count in waiting.items():
        active.add_metric(key, count)
    yield from (active, since, ended, last)


def _outbox_metrics(session: Session, time: datetime) -> Iterator[Metric]:
    query = select(func.count(), func.min(Event.at)).join(Mail, Mail.event_id == Event.id).where(Mail.sent_at.is_(None))
    waiting, oldest = session.execute(query).one()
    yield _gauge("sentiment_outbox_mails", "Mails that wait to be sent.", waiting)
    age_s = (time - oldest).total_seconds() if oldest else 0.0
    yield _gauge("sentiment_outbox_oldest_age_seconds", "How long the oldest of them has waited; 0 for none.", age_s)


def _other_metrics(session: Session) -> Iterator[Metric]:
    events = CounterMetricFamily("sentiment_events", "Events by kind, since the database was made.", labels=["kind"])
    for kind, count in session.execute(select(Event.kind, func.count()).group_by(Event.kind)):
        events.add_metric([kind], count)
    yield events
    # Counted by the narrowest index; by label it would read every text.
    rows = session.scalar(select(func.count()).select_from(Feedback))
    yield _gauge("sentiment_feedback_rows", "Rows of feedback in the database.", rows or 0)
    deployment = deployments.serving(session)
    if deployment is not None:
        yield _gauge("sentiment_deployed_version", "The version that is to serve.", deployment.version)
        yield _gauge(
            "sentiment_deployment_timestamp_seconds", "When it was deployed.", deployment.started_at.timestamp()
        )
        bakes = deployment.bakes_until is not None
        yield _gauge("sentiment_deployment_bakes", "Whether it is in its bake time.", bakes)


def _release_metrics(session: Session) -> Iterator[Metric]:
    """Of what is tried on live texts."""
    release = releases.running(session)
    yield _gauge(
        "sentiment_release_version",
        "The version that is tried on live texts; 0 for none.",
        release.version if release else 0,
    )
    if release is None:
        return
    yield _gauge("sentiment_release_share", "Of live texts, those that it answers, 0 to 1.", releases.share_of(release))
    texts = GaugeMetricFamily("sentiment_release_texts", "Texts put to both versions, by length.", labels=["part"])
    differ = GaugeMetricFamily("sentiment_release_differing_texts", "Those with another label.", labels=["part"])
    for name, part in release.figures.get("parts", {}).items():
        texts.add_metric([name], part["texts"])
        differ.add_metric([name], part["differ"])
    yield from (texts, differ)


def _lease_metrics(database: Database) -> Iterator[Metric]:
    holder = leases.holder_of(database, leases.SCHEDULER)
    yield _gauge("sentiment_scheduler_running", "Whether any host runs the scheduler.", holder is not None)
    here = holder is not None and leases.is_of_this_process(holder)
    yield _gauge("sentiment_scheduler_runs_here", "Whether this one does.", here)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)
