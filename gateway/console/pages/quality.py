"""The view Quality: check results of the deployed model over time, with promotions, rollbacks and retrainings."""

from datetime import datetime
from typing import Any

from fastapi import Response

from common.settings import Settings
from gateway.console.page import PageRequest, view
from gateway.routes.admin import in_thread
from gateway.routes.context import AppContext
from storage import events, feedback_sources, jobs
from storage.api_keys import Scope
from storage.events import EventKind
from storage.tables import Event, Figures, Job

PATH = "/console/quality"
SHOWN_CHECKS = 400
"""Number of checks shown, more than two weeks of hourly ones."""
SHOWN_EVENTS = 200
_FEEDBACK = "feedback"
_DATA = ("validation", _FEEDBACK)
LEAST_SPAN_S = 3_600
"""Minimum length of the chart's time axis in seconds; two checks may be seconds apart."""
_ALL_LIVE = "all"
"""The part with all live texts. `lifecycle.monitoring.live_quality` has the same constant, but imports scikit-learn."""
_FIGURES = (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
_MARKS = {
    EventKind.PROMOTED: ("▲", "good", "promoted"),
    EventKind.ROLLED_BACK: ("▼", "bad", "rolled back"),
    EventKind.RETRAINING_STARTED: ("○", "muted", "retraining started"),
    EventKind.REJECTED: ("✕", "bad", "candidate rejected"),
}
"""Sign, colour and words for each kind of event in the chart."""


async def show(page_request: PageRequest) -> Response:
    """Show the page."""
    checks, marks, sources = await in_thread(lambda: _read(page_request.app))
    result = checks[-1].result if checks else {}
    context = {
        "checks": checks,
        "last": checks[-1] if checks else None,
        "confusions": [_confusion(name, result[name]) for name in _DATA if name in result],
        "live": result.get("live", {}),
        "drift": _drift(result.get("drift", {})),
        "chart": _chart(page_request.app.settings, checks, marks),
        "marks": [(*_MARKS[EventKind(mark.kind)], mark) for mark in marks],
        "settings": page_request.app.settings,
        "sources": sources,
    }
    return page_request.page("quality.html", context)


def _read(app: AppContext) -> tuple[list[Job], list[Event], list[Figures]]:
    """Read the last checks and the events since the first of them, oldest first, and the feedback sources."""
    database = app.storage.open()
    checks = jobs.ended_checks(database, SHOWN_CHECKS)[::-1]
    found = events.newest_of(database, _MARKS.keys(), SHOWN_EVENTS)[::-1]
    sources = feedback_sources.list_sources(database, app.settings.trusted_sources)
    return checks, [event for event in found if checks and event.at >= checks[0].created_at], sources


def _chart(settings: Settings, checks: list[Job], marks: list[Event]) -> dict[str, Any]:
    """Return the chart: a line for each figure on each data set and for each threshold, with events as marks."""
    names = [name for name in _DATA if any(name in check.result for check in checks)]
    series: list[dict[str, Any]] = [
        {
            "name": f"{title}, {name}",
            "colour": _DATA.index(name) + 2 * (figure == "macro_f1"),
            "values": [check.result.get(name, {}).get(figure) for check in checks],
        }
        for name in names
        for figure, title in _FIGURES
    ]
    estimates = [_estimated(check) for check in checks]
    if any(value is not None for value in estimates):
        title = "accuracy, live texts (estimated)"
        series.append({"name": title, "colour": 4, "dash": [2, 4], "values": estimates})
    least = {"accuracy": settings.min_accuracy, "macro F1": settings.min_macro_f1}
    lines = {f"threshold of {title}": value for title, value in least.items()}
    if len(set(least.values())) == 1:
        lines = {"threshold of both": settings.min_accuracy}
    times = [_seconds(check.ended_at or check.created_at) for check in checks]
    if times and times[-1] - times[0] < LEAST_SPAN_S:
        times = [times[-1] - LEAST_SPAN_S, *times]  # a point without results
        for item in series:
            item["values"] = [None, *item["values"]]
    series += [
        {"name": title, "colour": 5, "dash": [6, 4], "values": [value] * len(times)} for title, value in lines.items()
    ]
    shown = [value for item in series for value in item["values"] if value is not None]
    return {
        "x": times,
        "series": series,
        "decimals": 4,
        "range": [max(0.0, min(shown, default=0.0) - 0.05), 1],
        "marks": [
            {"x": _seconds(mark.at), "sign": _MARKS[EventKind(mark.kind)][0], "colour": _MARKS[EventKind(mark.kind)][1]}
            for mark in marks
        ],
    }


def _estimated(check: Job) -> float | None:
    """Return the accuracy on live texts that a check estimated without labels; None if there were too few texts."""
    estimate: list[float] = check.result.get("live", {}).get("parts", {}).get(_ALL_LIVE, {}).get("accuracy", [None])
    return estimate[0]


def _drift(found: Figures) -> Figures | None:
    """Return the kinds of drift that a check tested for, the alarms, and what was found instead; None if no kind."""
    if not found:
        return None
    alarms = [item["alarm"] for item in found.values() if item["alarm"]]
    quiet = [kind for kind, item in found.items() if not item["alarm"]]
    notes = list(alarms)
    if live := [kind for kind in quiet if kind != _FEEDBACK]:
        notes.append(f"no drift of live {', '.join(live)} from the training data")
    if _FEEDBACK in quiet:
        notes.append("the newest feedback shows no more errors than the feedback before it")
    told = "; ".join(notes)
    return {"kinds": list(found), "alarms": len(alarms), "told": told[:1].upper() + told[1:]}


def _seconds(time: datetime) -> int:
    return round(time.timestamp())


def _confusion(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return the confusion matrix: a row for each right label, and in each cell the count and a shade from 0 to 4."""
    rows = [
        (label, [(count, round(4 * count / sum(row)) if sum(row) else 0) for count in row])
        for label, row in zip(found["f1_by_label"], found["confusion"], strict=True)
    ]
    return {"data": name, "labels": list(found["f1_by_label"]), "rows": rows, "f1": found["f1_by_label"]}


routes = [view("GET", PATH, Scope.READ, show)]
