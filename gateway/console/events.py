"""The view Events: what the loop did, and why, with its figures; filtered, and as a file."""

import csv
import io
import json
from typing import NamedTuple
from urllib.parse import urlencode

from fastapi import Response
from sqlalchemy.exc import SQLAlchemyError

from errors import PipelineError
from gateway.console.views import Visit, view
from gateway.problems import FieldError, InvalidFieldsError, StorageUnavailableError
from serving.texts import FORMULA_STARTS
from storage import events
from storage.api_keys import Scope
from storage.events import EventKind
from storage.tables import Event, Figures

PATH = "/console/events"
EXPORT_PATH = "/console/events.csv"
SHOWN = 50
EXPORTED = 10_000
_MOST_CHARACTERS = 200
_MOST_DIGITS = 18


class Filter(NamedTuple):
    """Which events are asked for."""

    kind: str | None
    words: str
    before: int | None

    def query(self, **changed: object) -> str:
        """As the end of an address."""
        given = {"kind": self.kind, "words": self.words, "before": self.before} | changed
        return urlencode({name: value for name, value in given.items() if value})


async def show(visit: Visit) -> Response:
    """The page."""
    wanted = _filter(visit)
    found = await _find(visit, wanted, SHOWN + 1)
    context = {
        "kinds": [kind.value for kind in EventKind],
        "wanted": wanted,
        "events": [(event, flat(event.figures)) for event in found[:SHOWN]],
        "older": wanted.query(before=found[SHOWN - 1].id) if len(found) > SHOWN else "",
        "export": wanted.query(before=None),
    }
    return visit.page("events.html", context)


async def export(visit: Visit) -> Response:
    """The same as a CSV file, without a bound that a person would meet."""
    wanted = _filter(visit)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["id", "at", "kind", "version", "job", "message", "figures"])
    for event in await _find(visit, wanted, EXPORTED):
        told = events.as_json(event)
        figures = json.dumps(event.figures, ensure_ascii=False)
        row = [event.id, told["at"], event.kind, event.version, event.job_id, _harmless(event.message), figures]
        writer.writerow(row)
    headers = {"Content-Disposition": 'attachment; filename="events.csv"'}
    return Response(text.getvalue(), headers=headers, media_type="text/csv; charset=utf-8")


def flat(figures: Figures, prefix: str = "") -> dict[str, object]:
    """Figures within figures under one name, as `validation accuracy`."""
    found: dict[str, object] = {}
    for name, value in figures.items():
        found |= flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
    return found


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _filter(visit: Visit) -> Filter:
    asked = visit.request.query_params
    kind, words, before = asked.get("kind") or None, asked.get("words", "").strip(), asked.get("before", "")
    faults = []
    if kind is not None and kind not in [known.value for known in EventKind]:
        faults.append(FieldError("kind", "is no kind of event"))
    if len(words) > _MOST_CHARACTERS or "\0" in words:
        faults.append(FieldError("words", f"are over {_MOST_CHARACTERS} characters, or hold a NUL"))
    if before and not (before.isascii() and before.isdecimal() and len(before) <= _MOST_DIGITS):
        faults.append(FieldError("before", "is no event's number"))
    if faults:
        raise InvalidFieldsError(faults)
    return Filter(kind, words, int(before) if before else None)


async def _find(visit: Visit, wanted: Filter, limit: int) -> list[Event]:
    def read() -> list[Event]:
        return events.newest(visit.loop.storage.open(), limit, wanted.kind, wanted.before, wanted.words)

    try:
        return await visit.loop.work.run(read)
    except (PipelineError, SQLAlchemyError) as error:
        raise StorageUnavailableError("The events cannot be read now: the database does not answer.") from error


routes = [view("GET", PATH, Scope.READ, show), view("GET", EXPORT_PATH, Scope.READ, export)]
