"""The view Events: what the pipeline did, why, and with which figures; with filters and CSV export."""

import csv
import io
import json
from typing import NamedTuple
from urllib.parse import urlencode

from fastapi import Response

from gateway.console.page import PageRequest, view
from gateway.http.problems import FieldError, InvalidFieldsError
from storage import events
from storage.api_keys import Scope
from storage.events import EventKind
from storage.tables import Event, Figures
from tables.csv_writing import without_formula

PATH = "/console/events"
EXPORT_PATH = "/console/events.csv"
SHOWN = 50
EXPORTED = 10_000
_MOST_CHARACTERS = 200
_MOST_DIGITS = 18
_NAMES = {"macro_f1": "macro F1", "f1_by_label": "F1 by label", "calibration_error": "calibration error"}
"""Names of figures for people; other names stay, because labels are names too."""
_WORDS: dict[str, str] = {
    EventKind.CHECKED: "check",
    EventKind.STALE: "under a threshold",
    EventKind.ESTIMATED_LOW: "low estimate",
    EventKind.DATA_UNFIT: "data files unusable",
    EventKind.DATA_FIT: "data files usable again",
    EventKind.MONITORED: "monitoring passed",
    EventKind.SUSPECTED: "suspicion",
    EventKind.RECONCILED: "deployment repaired",
    EventKind.RELEASE_HELD: "trial held",
    EventKind.TAKEN_BACK: "trial taken back",
    EventKind.RELEASE_STOPPED: "trial ended",
    EventKind.CANARY_STEP: "next canary step",
}
"""Kinds of events in words, if they are not just the kind's own words."""


class Filter(NamedTuple):
    """The filter of an event list."""

    kind: str | None
    words: str
    before: int | None

    def query(self, **changed: object) -> str:
        """Return the filter as a URL query string, with the given fields changed."""
        given = {"kind": self.kind, "words": self.words, "before": self.before} | changed
        return urlencode({name: value for name, value in given.items() if value})


async def show(page_request: PageRequest) -> Response:
    """Show the page."""
    wanted = _filter(page_request)
    found = await _find(page_request, wanted, SHOWN + 1)
    context = {
        "kinds": [(kind.value, in_words(kind.value)) for kind in EventKind],
        "wanted": wanted,
        "events": [(event, in_words(event.kind), flat(event.figures)) for event in found[:SHOWN]],
        "older": wanted.query(before=found[SHOWN - 1].id) if len(found) > SHOWN else "",
        "export": wanted.query(before=None),
    }
    return page_request.page("events.html", context)


async def export(page_request: PageRequest) -> Response:
    """Return the filtered events as a CSV file, up to `EXPORTED` of them."""
    wanted = _filter(page_request)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "at", "kind", "version", "job", "message", "figures"])
    for event in await _find(page_request, wanted, EXPORTED):
        fields = events.as_json(event)
        figures = json.dumps(event.figures, ensure_ascii=False)
        row = [event.id, fields["at"], event.kind, event.version, event.job_id, without_formula(event.message), figures]
        writer.writerow(row)
    headers = {"Content-Disposition": 'attachment; filename="events.csv"'}
    return Response(text.getvalue(), headers=headers, media_type="text/csv; charset=utf-8")


def in_words(kind: str) -> str:
    """Return a kind of events in words. Older releases stored kinds that no longer exist."""
    return _WORDS.get(kind, kind.replace("-", " "))


def flat(figures: Figures, prefix: str = "") -> dict[str, object]:
    """Flatten nested figures; their names are joined, as in `validation macro F1`."""
    found: dict[str, object] = {}
    for name, value in figures.items():
        shown = prefix + _NAMES.get(name, name)
        found |= flat(value, f"{shown} ") if isinstance(value, dict) else {shown: value}
    return found


def _filter(page_request: PageRequest) -> Filter:
    asked = page_request.request.query_params
    kind, words, before = asked.get("kind") or None, asked.get("words", "").strip(), asked.get("before", "")
    faults = []
    if kind is not None and kind not in [known.value for known in EventKind]:
        faults.append(FieldError("kind", "is not a kind of event"))
    if len(words) > _MOST_CHARACTERS or "\0" in words:
        faults.append(FieldError("words", f"have over {_MOST_CHARACTERS} characters, or contain a NUL"))
    if before and not (before.isascii() and before.isdecimal() and len(before) <= _MOST_DIGITS):
        faults.append(FieldError("before", "is not the number of an event"))
    if faults:
        raise InvalidFieldsError(faults)
    return Filter(kind, words, int(before) if before else None)


async def _find(page_request: PageRequest, wanted: Filter, limit: int) -> list[Event]:
    storage = page_request.app.storage
    return await page_request.app.work.run(
        lambda: events.newest(storage.open(), limit, wanted.kind, wanted.before, wanted.words)
    )


routes = [view("GET", PATH, Scope.READ, show), view("GET", EXPORT_PATH, Scope.READ, export)]
