"""A CSV file that is dropped on the view Try, and its rows with label, score and version: all of them, or none."""

import asyncio
import csv
import difflib
import io
from dataclasses import dataclass

from fastapi import Response

from errors import PipelineError
from gateway.batch_splitting import TextsRefusedError
from gateway.console.views import Visit, view
from gateway.deadlines import unless_client_leaves
from gateway.deps import get_limits, get_predictor
from gateway.inference import Prediction
from gateway.predictions import VERSION_HEADER
from gateway.problems import FieldError, InvalidFieldsError, TooLargeError
from scoring.csv_records import CsvRecords, row_fault
from storage.api_keys import Scope

PATH = "/console/score"
MEDIA_TYPE = "text/csv"
TEXT = "text"
ADDED = ("label", "score", "version")
MOST_ROWS = 5_000
"""What a slow model gets done in a minute; `python app.py score` takes files of any size."""
MOST_COLUMNS = 1_000
_TOLD = 20
"""Faulty rows; the others are counted."""


@dataclass(frozen=True)
class Rows:
    """The rows of a file, all of which can be classified."""

    header: list[str]
    fields: list[list[str]]
    lines: list[int]
    """Where each ends."""
    text_at: int

    @property
    def texts(self) -> list[str]:
        """Theirs."""
        return [row[self.text_at] for row in self.fields]


async def score(visit: Visit) -> Response:
    """Classify each row; the answer is the file with the three columns that are added."""
    rows = await asyncio.to_thread(read_rows, visit.body)
    limits = get_limits(visit.request)
    if limits is not None:
        limits.count(visit.request.scope, len(rows.fields) - 1)  # one was counted when the request came
    predictor = get_predictor(visit.request)
    deadline = asyncio.get_running_loop().time() + predictor.batch_deadline_s
    try:
        asking = predictor.predict_batch(rows.texts, deadline)
        predictions = await unless_client_leaves(visit.request.receive, asking)
    except TextsRefusedError as error:
        raise _refusal(
            [(rows.lines[row], f"{TEXT!r} is refused by the model: {reason}") for row, reason in error.refusals.items()]
        ) from error
    headers = {
        "Content-Disposition": 'attachment; filename="scored.csv"',
        VERSION_HEADER: str(predictions[0].version),
        "X-Rows": str(len(predictions)),
    }
    body = await asyncio.to_thread(_written, rows, predictions)
    return Response(body, headers=headers, media_type=f"{MEDIA_TYPE}; charset=utf-8")


def read_rows(body: bytes) -> Rows:
    """Read a CSV file in UTF-8 as `python app.py score` does.

    Raises:
        InvalidFieldsError: something is wrong; each faulty row is told, of many the first.
        TooLargeError: it has more than `MOST_ROWS`.
    """
    try:
        records = CsvRecords(io.BytesIO(body), "The file")
    except PipelineError as error:
        raise InvalidFieldsError([FieldError("line 1", str(error))]) from error
    _check_header(records.header)
    text_at = records.header.index(TEXT)
    fields: list[list[str]] = []
    lines: list[int] = []
    faults: list[tuple[int, str]] = []
    for number, record in enumerate(records, start=1):
        if number > MOST_ROWS:
            most = f"has over {MOST_ROWS:,} rows; `python app.py score` takes files of any size"
            raise TooLargeError("The file is too long.", [FieldError("file", most)])
        fault = record if isinstance(record, str) else row_fault(record, records.header, text_at)
        if fault is not None:
            faults.append((records.line, fault))
        elif not isinstance(record, str):
            fields.append(record)
            lines.append(records.line)
    if faults:
        raise _refusal(faults)
    if not fields:
        raise InvalidFieldsError([FieldError("file", "has column names but no rows under them")])
    return Rows(records.header, fields, lines, text_at)


def _check_header(header: list[str]) -> None:
    if len(header) > MOST_COLUMNS:
        raise InvalidFieldsError(
            [FieldError("line 1", f"has {len(header):,} columns; at most {MOST_COLUMNS} are read")]
        )
    if TEXT not in header:
        near = difflib.get_close_matches(TEXT, header, n=1)
        advice = f"did you mean {near[0][:50]!r}? Name it {TEXT}" if near else f"the texts' column must be named {TEXT}"
        raise InvalidFieldsError([FieldError("line 1", f"has no column {TEXT!r}; {advice}")])
    clashes = [FieldError(f"line 1, column {name}", "is there already; rename it") for name in ADDED if name in header]
    if clashes:
        raise InvalidFieldsError(clashes)


def _refusal(faults: list[tuple[int, str]]) -> InvalidFieldsError:
    told = [FieldError(f"line {line}", fault) for line, fault in faults[:_TOLD]]
    if len(faults) > _TOLD:
        told.append(FieldError("file", f"has {len(faults) - _TOLD:,} more such rows"))
    return InvalidFieldsError(told)


def _written(rows: Rows, predictions: list[Prediction]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow([*rows.header, *ADDED])
    for fields, prediction in zip(rows.fields, predictions, strict=True):
        writer.writerow([*fields, prediction.label, f"{prediction.score:.4f}", prediction.version])
    return text.getvalue().encode()


routes = [view("POST", PATH, Scope.PREDICT, score, MEDIA_TYPE)]
