"""The view Try: type one or more texts, see the predictions and the reasons for them, and correct labels."""

import asyncio
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fastapi import Response

from common.errors import PipelineError
from common.source_names import is_trusted, of_console, of_key
from gateway.console.page import PageRequest, view
from gateway.console.pages.leave_one_out import MovedBy, Piece, are_small, moved, pieces
from gateway.console.uploaded_table import MOST_ROWS, TEXT_COLUMN
from gateway.http.problems import FieldError, InvalidFieldsError
from gateway.http.request_body import MAX_BODY_BYTES
from gateway.load_control.deadlines import unless_client_leaves
from gateway.monitoring.recent_rates import TRY_PATH
from gateway.routes import feedback
from serving.client.errors import TextRefusedError
from serving.client.triton_client import Classification
from serving.model_repo.bundle import Bundle
from serving.model_repo.protocol import Phases
from serving.model_repo.repository import ModelRepository
from serving.model_repo.texts import text_fault
from storage.api_keys import Scope
from storage.feedback import LabelledText, is_held_out, text_hash

PATH = "/"
FEEDBACK_PATH = "/console/feedback"
SHOWN_TEXTS = 200
"""Maximum lines at a time, because a longer page is slow to show. `python app.py score` is for files."""
FORM_BYTES = 2 * 1024 * 1024
"""Maximum size of the form with texts: the page's 200,000 characters are up to 1.8 MB if every byte is escaped."""
LABEL_FORM_BYTES = 1024 * 1024
"""Maximum size of the form with one text (up to 100,000 characters) and its label."""
_FILES = {"most_bytes": MAX_BODY_BYTES, "most_rows": MOST_ROWS, "text_column": TEXT_COLUMN}


@dataclass(frozen=True)
class Answer:
    """The prediction for a text."""

    text: str
    label: str
    probabilities: dict[str, float]
    """Calibrated probability of each label, in the order of the model's labels."""
    version: int
    truncated: bool
    words: list[MovedBy]
    """Influence of each word; empty if it was not computed, or the text is one word."""

    @property
    def words_by_change(self) -> list[MovedBy]:
        """The words sorted by influence, strongest first."""
        asked = [word for word in self.words if word.change is not None]
        return sorted(asked, key=lambda word: -abs(word.change or 0))

    @property
    def largest_effect(self) -> float | None:
        """The largest influence of a word, from 0 to 1, if that is small; None if a word has a clear influence."""
        return abs(self.words_by_change[0].change or 0) if self.words and are_small(self.words) else None


async def show(page_request: PageRequest) -> Response:
    """Show the empty page."""
    return page_request.page("try.html", _nothing_asked())


async def ask(page_request: PageRequest) -> Response:
    """Classify the input: one text with the influence of its words, or one text per line."""
    typed = page_request.form.get("text", "")
    by_line = "lines" in page_request.form
    texts = _texts(typed, by_line)
    found = pieces(texts[0]) if len(texts) == 1 else []
    variants = [piece.variant for piece in found if piece.variant is not None]
    page_request.app.count_texts(page_request.request, len(texts) + len(variants))
    page_request.app.metrics.tried_texts += len(texts)
    predictor = page_request.app.predictor
    deadline = asyncio.get_running_loop().time() + page_request.app.settings.batch_deadline_s
    started = time.perf_counter()
    try:
        calls = await unless_client_leaves(
            page_request.request.receive, predictor.classify([*texts, *variants], deadline)
        )
    except TextRefusedError as error:
        raise InvalidFieldsError([FieldError("text", f"is refused by the model: {error}")]) from error
    seconds = time.perf_counter() - started
    answers = await asyncio.to_thread(_answers, page_request.app.settings.model_repository, texts, calls)
    if found:
        answers[0] = _explained(answers[0], calls, found)
    context = {
        **_FILES,
        "typed": typed,
        "by_line": by_line,
        "answers": answers,
        "labels": list(dict.fromkeys(label for answer in answers for label in answer.probabilities)),
        "seconds": seconds,
        "phases": _phases(calls),
    }
    return page_request.part("_answers.html", "try.html", context)


async def tell(page_request: PageRequest) -> Response:
    """Store the right label of a text."""
    return page_request.part("_stored.html", "try.html", {**_nothing_asked(), "stored": await keep_label(page_request)})


async def keep_label(page_request: PageRequest) -> dict[str, object]:
    """Store the form's text and label as feedback, and return the variables for the template.

    Raises:
        InvalidFieldsError: the text or the label is invalid.
        StorageUnavailableError: the feedback cannot be stored now.
    """
    text, label = page_request.form.get("text", ""), page_request.form.get("label", "")
    errors = [
        FieldError(name, fault) for name, value in (("text", text), ("label", label)) if (fault := text_fault(value))
    ]
    if "\0" in text + label:
        errors.append(FieldError("text", "contains a NUL character; remove it"))
    if errors:
        raise InvalidFieldsError(errors)
    source = source_of(page_request)
    kept = await feedback.keep(page_request.request, {"": LabelledText(text, label)}, source)
    trusted = is_trusted(source, page_request.app.settings.trusted_sources)
    return {"label": kept[""].label, "held_out": is_held_out(text_hash(text)), "trusted": trusted}


def source_of(page_request: PageRequest) -> str:
    """Return the source of the feedback: `console:NAME` for a session with the scope `texts`, else as in the API.

    A key with only the scope `feedback` is for programs. Signing in with it must not make its user a trusted source.
    """
    if page_request.session is None:
        return of_key(page_request.request.scope["state"]["caller"])
    caller = page_request.session.caller
    return of_console(caller.name) if Scope.TEXTS in caller.scopes else of_key(caller.name)


def _nothing_asked() -> dict[str, object]:
    return {"typed": "", "by_line": False, "answers": None, **_FILES}


def _texts(typed: str, by_line: bool) -> list[str]:
    texts = [line for line in typed.split("\n") if line.strip()] if by_line else [typed]
    if len(texts) > SHOWN_TEXTS:
        too_many = f"has {len(texts):,} lines; the maximum is {SHOWN_TEXTS}. Use `app.py score` for files"
        raise InvalidFieldsError([FieldError("text", too_many)])
    faults = [(number, fault) for number, text in enumerate(texts or [""], 1) if (fault := text_fault(text))]
    if faults:
        is_listed = by_line and len(texts) > 1
        raise InvalidFieldsError(
            [FieldError(f"line {number}" if is_listed else "text", fault) for number, fault in faults]
        )
    return texts


def _answers(repository: Path, texts: list[str], calls: list[Classification]) -> list[Answer]:
    answers: list[Answer] = []
    for call in calls:
        names = _labels(repository, call.version)
        for position, (label, score, row) in enumerate(zip(call.labels, call.scores, call.by_text(), strict=True)):
            if len(answers) == len(texts):
                break
            # The bundle may be unreadable here, for example with an external Triton; then only the label is known.
            by_label = dict(zip(names, row, strict=True)) if len(names) == len(row) else {label: score}
            text = texts[len(answers)]
            answers.append(Answer(text, label, by_label, call.version, position in call.truncated, []))
    return answers


def _explained(answer: Answer, calls: list[Classification], found: list[Piece]) -> Answer:
    """Return `answer` with the influence of each word on the probability of the label."""
    rows = [row for call in calls for row in call.by_text()]
    position = rows[0].index(max(rows[0]))
    words = moved(found, rows[0][position], [row[position] for row in rows[1:]])
    return replace(answer, words=words if len(words) > 1 else [])


def _phases(calls: list[Classification]) -> Phases | None:
    """Return the engine's times, summed over all calls; None if no call has them."""
    known = [call.phases for call in calls if call.phases is not None]
    return Phases(*(sum(times) for times in zip(*known, strict=True))) if known else None


def _labels(repository: Path, version: int) -> tuple[str, ...]:
    """Return the labels of a version; empty if its bundle cannot be read."""
    try:
        return _read_labels(repository, version)
    except PipelineError:
        return ()


@lru_cache(maxsize=16)
def _read_labels(repository: Path, version: int) -> tuple[str, ...]:
    return Bundle.load(ModelRepository(repository).version_directory(version)).labels


routes = [
    view("GET", PATH, Scope.PREDICT, show),
    view("POST", TRY_PATH, Scope.PREDICT, ask, most_bytes=FORM_BYTES),
    view("POST", FEEDBACK_PATH, Scope.FEEDBACK, tell, most_bytes=LABEL_FORM_BYTES),
]
