"""The view Quality: how good what serves is found to be, over time, and what was done about it."""

from datetime import datetime
from typing import Any

from fastapi import Response

from gateway.admin import in_thread
from gateway.console.views import Visit, view
from gateway.deps import Loop
from settings import Settings
from storage import events, jobs
from storage.api_keys import Scope
from storage.events import EventKind
from storage.tables import Event, Job

PATH = "/console/quality"
SHOWN_CHECKS = 400
"""Two weeks of hourly ones, and more."""
SHOWN_EVENTS = 200
_DATA = ("validation", "feedback")
_ALL_LIVE = "all"
"""The part of the live texts that is all of them; as `lifecycle.live_quality` names it, which imports scikit-learn."""
_FIGURES = (("accuracy", "accuracy"), ("macro_f1", "macro F1"))
_MARKS = {
    EventKind.PROMOTED: ("▲", "good", "promoted"),
    EventKind.ROLLED_BACK: ("▼", "bad", "rolled back"),
    EventKind.RETRAINING_STARTED: ("○", "muted", "retraining started"),
    EventKind.REJECTED: ("✕", "bad", "candidate rejected"),
}
"""Of what the loop did: sign, colour and words."""


async def show(visit: Visit) -> Response:
    """The page."""
    checks, marks = await in_thread(lambda: _read(visit.loop))
    context = {
        "checks": checks,
        "last": checks[-1] if checks else None,
        "confusions": [_confusion(name, checks[-1].result[name]) for name in _data_of(checks[-1])] if checks else [],
        "live": checks[-1].result.get("live", {}) if checks else {},
        "drift": checks[-1].result.get("drift", {}) if checks else {},
        "chart": _chart(visit.loop.settings, checks, marks),
        "marks": [(*_MARKS[EventKind(mark.kind)], mark) for mark in marks],
        "settings": visit.loop.settings,
    }
    return visit.page("quality.html", context)


def _read(loop: Loop) -> tuple[list[Job], list[Event]]:
    """The last checks, and what was done since the first of them, the oldest first."""
    database = loop.storage.open()
    checks = jobs.ended_checks(database, SHOWN_CHECKS)[::-1]
    found = events.newest_of(database, _MARKS.keys(), SHOWN_EVENTS)[::-1]
    return checks, [event for event in found if checks and event.at >= checks[0].created_at]


def _data_of(check: Job) -> list[str]:
    return [name for name in _DATA if name in check.result]


def _chart(settings: Settings, checks: list[Job], marks: list[Event]) -> dict[str, Any]:
    """Lines of each figure on each data set, and of the thresholds; events as marks."""
    names = [name for name in _DATA if any(name in check.result for check in checks)]
    series: list[dict[str, Any]] = [
        {
            "name": f"{told}, {name}",
            "colour": _DATA.index(name) + 2 * (figure == "macro_f1"),
            "values": [check.result.get(name, {}).get(figure) for check in checks],
        }
        for name in names
        for figure, told in _FIGURES
    ]
    estimates = [_estimated(check) for check in checks]
    if any(value is not None for value in estimates):
        told = "accuracy, live texts (estimated)"
        series.append({"name": told, "colour": 4, "dash": [2, 4], "values": estimates})
    least = {"accuracy": settings.min_accuracy, "macro F1": settings.min_macro_f1}
    lines = {f"least {told}": value for told, value in least.items()}
    if len(set(least.values())) == 1:
        lines = {"least of both": settings.min_accuracy}
    series += [
        {"name": told, "colour": 5, "dash": [6, 4], "values": [value] * len(checks)} for told, value in lines.items()
    ]
    shown = [value for item in series for value in item["values"] if value is not None]
    return {
        "x": [_seconds(check.ended_at or check.created_at) for check in checks],
        "series": series,
        "decimals": 4,
        "range": [max(0.0, min(shown, default=0.0) - 0.05), 1],
        "marks": [
            {"x": _seconds(mark.at), "sign": _MARKS[EventKind(mark.kind)][0], "colour": _MARKS[EventKind(mark.kind)][1]}
            for mark in marks
        ],
    }


def _estimated(check: Job) -> float | None:
    """The accuracy on live texts that a check estimated without labels, if there were enough."""
    estimate: list[float] = check.result.get("live", {}).get("parts", {}).get(_ALL_LIVE, {}).get("accuracy", [None])
    return estimate[0]


def _seconds(time: datetime) -> int:
    return round(time.timestamp())


def _confusion(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """A matrix: of the texts of each right label, how many got which; with the shade of each cell, 0 to 4."""
    rows = [
        (label, [(count, round(4 * count / sum(row)) if sum(row) else 0) for count in row])
        for label, row in zip(found["f1_by_label"], found["confusion"], strict=True)
    ]
    return {"data": name, "labels": list(found["f1_by_label"]), "rows": rows, "f1": found["f1_by_label"]}


routes = [view("GET", PATH, Scope.READ, show)]
