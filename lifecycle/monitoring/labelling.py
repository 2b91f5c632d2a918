"""The accuracy on live texts from labels that people give to random ones, until they decide whether it is too low.

Up to `MOST_TEXTS` of the newest live texts of the deployed version are put in random order once: a series. People label
them in this order, in the console, by command or from a file. Their labels are ordinary feedback, and models learn
from those that are not held out: random texts bias neither training nor the accuracy on held-out feedback. Another
deployed version begins another series.

Only labels up to the first text that still waits for one count. Otherwise easy texts, which are labelled first, would
count more. Texts that nobody can label are skipped, and leave the series.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from common.settings import Settings
from common.wording import counted
from lifecycle.monitoring.confidence_sequence import decides, interval, labels_to_decide
from serving.model_repo.repository import ModelRepository
from serving.model_repo.texts import text_fault
from storage import events, jobs, label_draws
from storage.database import Database
from storage.events import EventKind
from storage.feedback import text_hash
from storage.label_draws import Draw, Series
from storage.sampled_predictions import newest_sample
from storage.tables import Figures
from trainer.evaluation import f1_scores

MOST_TEXTS = 2_000
LEAST_TEXTS = 200
"""Minimum number of live texts. Fewer would say little about those to come, even if all were labelled."""
MOST_AT_ONCE = 300
"""Maximum number of texts that one person gets at once: an hour or two of labelling."""
_FEW_LABELS = 10
"""With fewer labels, nobody can tell how many more are needed."""


@dataclass(frozen=True)
class Standing:
    """What the labels of a series say up to now."""

    version: int
    texts: int
    """Texts of the series that were not skipped."""
    since: datetime
    until: datetime
    """When the first and the last of the texts were classified."""
    threshold: float
    labels: int
    """Labels that count."""
    skipped: int
    accuracy: float | None
    """Share of the labels that were predicted; None without labels."""
    low: float
    high: float
    macro_f1: float | None
    is_under: bool | None
    """True if the accuracy is under the threshold; None until the labels decide it."""
    more: int | None
    """About how many more labels decide it; None while that cannot be told."""

    @property
    def found(self) -> str:
        """The accuracy and its interval, in words."""
        if self.accuracy is None:
            return "no label yet"
        low, high = (f"{100 * end:.0f}" for end in (self.low, self.high))
        return f"{100 * self.accuracy:.0f} % ({low} to {high}) after {counted(self.labels, 'label')}"

    @property
    def problem(self) -> str:
        """How the accuracy is under the threshold, in words; empty if it is not, or not yet known."""
        if not self.is_under:
            return ""
        return f"accuracy on live texts by random labels is {self.found}, below {self.threshold:g}"

    @property
    def outlook(self) -> str:
        """What the labels have decided or what is still needed, in words."""
        question = f"under {100 * self.threshold:g} %"
        if self.is_under is not None:
            return f"decided: it is {'' if self.is_under else 'not '}{question}"
        if self.more is None:
            return f"too early to say how many decide whether it is {question}"
        return f"about {_rounded(self.more)} more decide whether it is {question}"

    def __str__(self) -> str:
        """Return what was found and what it decides, in words."""
        return f"{self.found}; {self.outlook}"

    def figures(self) -> Figures:
        """Return the figures for the API, the commands and the result of a check."""
        return {
            "summary": str(self),
            "version": self.version,
            "texts": self.texts,
            "from": self.since.isoformat(timespec="seconds"),
            "to": self.until.isoformat(timespec="seconds"),
            "labels": self.labels,
            "skipped": self.skipped,
            "accuracy": None if self.accuracy is None else [self.accuracy, self.low, self.high],
            "macro_f1": self.macro_f1,
            "threshold": self.threshold,
            "under": self.is_under,
            "more": self.more,
        }


@dataclass(frozen=True)
class Batch:
    """Texts for one person to label, and what the labels say before."""

    standing: Standing | None
    """None if there are too few live texts to draw from."""
    texts: list[str]
    """Empty if the labels have decided, or others are labelling the rest."""

    def figures(self) -> Figures:
        """Return the values for the API and the command, without predictions: people who see them agree too often."""
        return {
            "standing": None if self.standing is None else self.standing.figures(),
            "texts": [{"id": text_hash(text), "text": text} for text in self.texts],
        }


def standing(settings: Settings, database: Database, version: int) -> Standing | None:
    """Return what the labels say about `version`; None if no texts were drawn from its live texts."""
    series = label_draws.read_series(database, settings.trusted_sources)
    return None if series is None or series.version != version else _standing(series, settings.min_accuracy)


def begin(settings: Settings, database: Database) -> None:
    """Begin a new series of the deployed version's newest live texts, if there are enough; otherwise keep the old one.

    Raises:
        PipelineError: no version is deployed.
    """
    version = ModelRepository(settings.model_repository).require_deployed()
    rows = [
        row
        for row in newest_sample(database, MOST_TEXTS, version=version)
        # The texts are not always stored as they were: without a long end, or a character that the database refuses.
        if row.text and text_hash(row.text) == row.text_hash and text_fault(row.text) is None
    ]
    if len(rows) >= LEAST_TEXTS:
        label_draws.begin_series(database, version, rows)


def texts_to_label(settings: Settings, database: Database, holder: str, limit: int) -> Batch:
    """Return up to `limit` texts for `holder` to label; begin a series if the deployed version has none.

    Raises:
        PipelineError: no version is deployed.
    """
    version = ModelRepository(settings.model_repository).require_deployed()
    series = label_draws.read_series(database, settings.trusted_sources)
    if series is None or series.version != version:
        begin(settings, database)
        series = label_draws.read_series(database, settings.trusted_sources)
        if series is None or series.version != version:
            return Batch(None, [])
    found = _standing(series, settings.min_accuracy)
    if found.is_under is not None:
        return Batch(found, [])
    waiting = {draw.text_hash: draw.text for draw in series.draws if draw.is_open}
    got = label_draws.hand_out(database, list(waiting)[: 2 * MOST_AT_ONCE], holder, limit)
    return Batch(found, [text for hash_, text in waiting.items() if hash_ in got])


def conclude(settings: Settings, database: Database) -> Standing | None:
    """Return the standing of the deployed version after new labels; if they decide, record it and request a check.

    Raises:
        PipelineError: no version is deployed.
    """
    version = ModelRepository(settings.model_repository).require_deployed()
    series = label_draws.read_series(database, settings.trusted_sources)
    if series is None or series.version != version:
        return None
    found = _standing(series, settings.min_accuracy)
    if found.is_under is not None:
        last = next(iter(events.newest_of(database, (EventKind.LABELS_DECIDED,), 1)), None)
        if last is None or last.at < series.began_at:
            message = f"Labels of random live texts of version {version}: {found}."
            with database.transaction() as session:
                events.record(session, EventKind.LABELS_DECIDED, message, found.figures(), version=version)
            jobs.enqueue(database, jobs.CHECK, "labels of live texts have decided")
    return found


def _standing(series: Series, threshold: float) -> Standing:
    counted_draws: list[Draw] = []
    skipped = 0
    for draw in series.draws:
        if draw.is_open:
            break
        if draw.is_skipped:
            skipped += 1
        else:
            counted_draws.append(draw)
    texts = len(series.draws) - skipped
    is_right = [draw.label == draw.predicted for draw in counted_draws]
    found = interval(is_right, texts, threshold)
    right, labels = sum(is_right), len(is_right)
    is_under = decides(found, texts, threshold) if texts else None
    is_early = is_under is not None or labels < _FEW_LABELS
    return Standing(
        series.version,
        texts,
        series.since,
        series.until,
        threshold,
        labels,
        skipped,
        right / labels if labels else None,
        found.low / max(texts, 1),
        found.high / max(texts, 1),
        _macro_f1(counted_draws) if labels else None,
        is_under,
        None if is_early else labels_to_decide(right, labels - right, texts, threshold),
    )


def _macro_f1(draws: Sequence[Draw]) -> float:
    """Return the mean F1 over the labels that occur among right labels and predictions."""
    names = sorted({name for draw in draws for name in (draw.label or "", draw.predicted)})
    right = [sum(draw.label == draw.predicted == name for draw in draws) for name in names]
    labelled = [sum(draw.label == name for draw in draws) for name in names]
    predicted = [sum(draw.predicted == name for draw in draws) for name in names]
    return float(np.mean(f1_scores(right, labelled, predicted)))


def _rounded(number: int) -> str:
    """Return a number with two significant digits."""
    digits = max(len(str(number)) - 2, 0)
    return f"{round(number, -digits):,}"
