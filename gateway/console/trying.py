"""The view Try: type a text, or many, and see what the model says, and why; tell it what is right."""

import asyncio
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from fastapi import Response

from errors import PipelineError
from gateway import feedback
from gateway.console.file_scoring import MOST_ROWS
from gateway.console.leave_one_out import MovedBy, Piece, moved, pieces
from gateway.console.views import Visit, view
from gateway.deadlines import unless_client_leaves
from gateway.deps import get_limits, get_predictor
from gateway.problems import FieldError, InvalidFieldsError
from gateway.request_body import MAX_BODY_BYTES
from serving.bundle import Bundle
from serving.protocol import Phases
from serving.repository import ModelRepository
from serving.texts import text_fault
from serving.triton_client import Classification, TextRefusedError
from storage.api_keys import Scope
from storage.feedback import LabelledText, is_held_out, text_hash

PATH = "/"
TRY_PATH = "/console/try"
FEEDBACK_PATH = "/console/feedback"
SHOWN_TEXTS = 200
"""Most lines in one go: a page of more would be slow to show. Files are for `python app.py score`."""
_FILES = {"most_bytes": MAX_BODY_BYTES, "most_rows": MOST_ROWS}


@dataclass(frozen=True)
class Answer:
    """What the model says of a text."""

    text: str
    label: str
    probabilities: dict[str, float]
    """Of each label, calibrated, in the order of the model's labels."""
    version: int
    truncated: bool
    words: list[MovedBy]
    """Which moved the answer; empty where that was not asked, or the text is one word."""

    @property
    def words_by_change(self) -> list[MovedBy]:
        """Those that moved it most first."""
        return sorted(self.words, key=lambda word: -abs(word.change or 0))


async def show(visit: Visit) -> Response:
    """The page, before anything is asked."""
    return visit.page("try.html", _nothing_asked())


async def ask(visit: Visit) -> Response:
    """Classify what was typed: one text, with the words that moved the answer, or one a line."""
    typed = visit.form.get("text", "")
    by_line = "lines" in visit.form
    texts = _texts(typed, by_line)
    limits = get_limits(visit.request)
    found = pieces(texts[0]) if len(texts) == 1 else []
    variants = [piece.variant for piece in found if piece.variant is not None]
    if limits is not None:
        limits.count(visit.request.scope, len(texts) + len(variants) - 1)  # one was counted when the request came
    predictor = get_predictor(visit.request)
    deadline = asyncio.get_running_loop().time() + predictor.batch_deadline_s
    started = time.perf_counter()
    try:
        calls = await unless_client_leaves(visit.request.receive, predictor.examine([*texts, *variants], deadline))
    except TextRefusedError as error:
        raise InvalidFieldsError([FieldError("text", f"is refused by the model: {error}")]) from error
    seconds = time.perf_counter() - started
    answers = await asyncio.to_thread(_answers, visit.loop.settings.model_repository, texts, calls)
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
    return visit.part("_answers.html", "try.html", context)


async def tell(visit: Visit) -> Response:
    """Keep what a text's right label is."""
    return visit.part("_told.html", "try.html", {**_nothing_asked(), "told": await keep_label(visit)})


async def keep_label(visit: Visit) -> dict[str, object]:
    """Keep the form's text and label as feedback; returns what to tell of it.

    Raises:
        InvalidFieldsError: they are none.
        StorageUnavailableError: they cannot be kept now.
    """
    text, label = visit.form.get("text", ""), visit.form.get("label", "")
    errors = [
        FieldError(name, fault) for name, value in (("text", text), ("label", label)) if (fault := text_fault(value))
    ]
    if "\0" in text + label:
        errors.append(FieldError("text", "has a NUL character; leave it out"))
    if errors:
        raise InvalidFieldsError(errors)
    await feedback.keep(visit.request, {"": LabelledText(text, label)}, "console")
    return {"label": label, "held_out": is_held_out(text_hash(text))}


def _nothing_asked() -> dict[str, object]:
    return {"typed": "", "by_line": False, "answers": None, **_FILES}


def _texts(typed: str, by_line: bool) -> list[str]:
    texts = [line for line in typed.split("\n") if line.strip()] if by_line else [typed]
    if len(texts) > SHOWN_TEXTS:
        too_many = (
            f"has {len(texts):,} lines; at most {SHOWN_TEXTS} can be tried at once, and `app.py score` takes files"
        )
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
            # A version whose bundle cannot be read here, as before a Triton elsewhere, tells the label's alone.
            by_label = dict(zip(names, row, strict=True)) if len(names) == len(row) else {label: score}
            text = texts[len(answers)]
            answers.append(Answer(text, label, by_label, call.version, position in call.truncated, []))
    return answers


def _explained(answer: Answer, calls: list[Classification], found: list[Piece]) -> Answer:
    """With what each word did to the probability of the label."""
    rows = [row for call in calls for row in call.by_text()]
    position = rows[0].index(max(rows[0]))
    words = moved(found, rows[0][position], [row[position] for row in rows[1:]])
    return replace(answer, words=words if len(words) > 1 else [])


def _phases(calls: list[Classification]) -> Phases | None:
    """Where the engine's time went, of all calls."""
    told = [call.phases for call in calls if call.phases is not None]
    return Phases(*(sum(times) for times in zip(*told, strict=True))) if told else None


def _labels(repository: Path, version: int) -> tuple[str, ...]:
    """The labels of a version; none where its bundle cannot be read."""
    try:
        return _read_labels(repository, version)
    except PipelineError:
        return ()


@lru_cache(maxsize=16)
def _read_labels(repository: Path, version: int) -> tuple[str, ...]:
    return Bundle.load(ModelRepository(repository).version_directory(version)).labels


routes = [
    view("GET", PATH, Scope.PREDICT, show),
    view("POST", TRY_PATH, Scope.PREDICT, ask),
    view("POST", FEEDBACK_PATH, Scope.FEEDBACK, tell),
]
