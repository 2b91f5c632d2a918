"""Classifies the rows of a file from the view Try, and returns them with the added columns label, score and version."""

import asyncio
import json

from fastapi import Response

from gateway.console.page import PageRequest, view
from gateway.console.uploaded_table import UploadedTable, read_table, refusal, told_faults
from gateway.http.request_body import MAX_BODY_BYTES
from gateway.inference.batch_splitting import TextsRefusedError
from gateway.load_control.deadlines import unless_client_leaves
from gateway.monitoring.recent_rates import SCORE_PATH
from gateway.routes.predictions import VERSION_HEADER
from serving.client.prediction import Prediction
from storage.api_keys import Scope
from tables.csv_writing import csv_header, csv_lines

MEDIA_TYPE = "text/csv"
_MOST_NOTES_BYTES = 3_000
"""Maximum bytes of the header with the notes; proxies refuse responses whose headers are longer than 4 or 8 KiB."""


async def score(visit: PageRequest) -> Response:
    """Classify each row that can be classified, and return these rows with the three added columns."""
    asked = visit.request.query_params
    table = await asyncio.to_thread(read_table, visit.body, asked.get("suffix", ""), asked.get("column", ""))
    visit.app.count_texts(visit.request, len(table.rows))
    deadline = asyncio.get_running_loop().time() + visit.app.settings.batch_deadline_s
    try:
        asking = visit.app.predictor.predict_batch(table.texts, deadline)
        predictions = await unless_client_leaves(visit.request.receive, asking)
    except TextsRefusedError as error:
        raise refusal(
            [(table.lines[row], f"the text is refused by the model: {why}") for row, why in error.refusals.items()]
        ) from error
    headers = {
        "Content-Disposition": 'attachment; filename="scored.csv"',
        VERSION_HEADER: str(predictions[0].version),
        "X-Rows": str(len(predictions)),
        "X-Rejected-Rows": str(len(table.faults)),
        "X-Notes": _notes(table),
    }
    body = await asyncio.to_thread(_written, table, predictions)
    return Response(body, headers=headers, media_type=f"{MEDIA_TYPE}; charset=utf-8")


def _notes(table: UploadedTable) -> str:
    """Return what was assumed and rejected, as a JSON list of strings in ASCII."""
    notes = table.notes + [f"{place}: {fault}" for place, fault in told_faults(table.faults)]
    while len(told := json.dumps(notes)) > _MOST_NOTES_BYTES:
        notes = [*notes[:-2], "…"]
    return told


def _written(table: UploadedTable, predictions: list[Prediction]) -> bytes:
    missing = [None] * len(table.columns)
    rows = (
        [*row, *missing[len(row) :], prediction.label, f"{prediction.score:.4f}", prediction.version]
        for row, prediction in zip(table.rows, predictions, strict=True)
    )
    return "".join([csv_header([*table.columns, *table.added]), *csv_lines(rows)]).encode()


routes = [view("POST", SCORE_PATH, Scope.PREDICT, score, media_type=MEDIA_TYPE, most_bytes=MAX_BODY_BYTES)]
