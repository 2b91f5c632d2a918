"""Estimates the quality of predictions for live texts, whose right labels are unknown."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from common.errors import PipelineError
from common.settings import Settings
from lifecycle.gates.batch_predict import Answers
from lifecycle.gates.evaluation_data import EvaluationData
from lifecycle.monitoring.accuracy_range import Estimator, Indices
from lifecycle.monitoring.estimation import EstimatedQuality
from serving.model_repo.bundle import Bundle
from serving.model_repo.repository import ModelRepository
from storage.database import Database, now
from storage.sampled_predictions import newest_sample
from storage.tables import Figures, SampledPrediction
from trainer.baseline import second_opinion
from trainer.dataset import Dataset

MOST_TEXTS = 2_000
"""Maximum number of sampled texts, the newest. More would be older, and make the interval little narrower."""
LONGEST_AGO = timedelta(days=1)
LEAST_TEXTS = 50
"""Minimum number of texts, in total or in a part. With fewer texts, an estimate says little."""
ALL = "all"
MOST_LEARNT = 10_000
"""Maximum number of training texts for the baseline, which then needs a few seconds."""
_SEED = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveQuality:
    """Estimates for the newest live texts, in total and by part."""

    since: datetime
    until: datetime
    parts: dict[str, EstimatedQuality]

    @property
    def all(self) -> EstimatedQuality:
        """The estimate for all texts."""
        return self.parts[ALL]

    def problems(self, settings: Settings) -> list[str]:
        """Return the figures whose interval is entirely under a threshold, in words."""
        return [
            f"estimated {figure} on {self.all.texts:,} live texts is {value}, below {least:g}"
            for figure, value, least in (
                ("accuracy", self.all.accuracy, settings.min_accuracy),
                ("macro F1", self.all.macro_f1, settings.min_macro_f1),
            )
            if value.high < least
        ]

    def figures(self) -> Figures:
        """Return the figures for the result of a check."""
        return {
            "from": self.since.isoformat(timespec="seconds"),
            "to": self.until.isoformat(timespec="seconds"),
            "parts": {name: part.figures() for name, part in self.parts.items()},
        }


def live_sample(database: Database, version: int) -> list[SampledPrediction]:
    """Return the newest live texts that `version` classified, the oldest of them first."""
    with database.reading() as session:
        since = now(session) - LONGEST_AGO
    return newest_sample(database, MOST_TEXTS, since, version)


def live_quality(
    settings: Settings,
    answers: Answers,
    dataset: Dataset,
    data: EvaluationData,
    sample: Sequence[SampledPrediction],
) -> LiveQuality | None:
    """Estimate the quality of the version that gave `answers` to `data` on a sample of live texts.

    Returns None if the sample is too small or the version's bundle is unreadable. A text that is sent often counts as
    often, because that is the quality that callers get. If the sample contains texts, the baseline, trained on
    `dataset`, gives a second opinion.
    """
    if len(sample) < LEAST_TEXTS:
        return None
    repository = ModelRepository(settings.model_repository)
    try:
        labels = Bundle.load(repository.version_directory(answers.version)).labels
    except PipelineError as error:
        log.warning("The quality on live texts cannot be estimated: %s", error)
        return None
    # This version cannot predict a label that only newer data have.
    index = np.array([labels.index(label) if label in labels else -1 for label in data.labels])
    live = [row.text for row in sample if row.text is not None]
    known, second = _second_opinion(dataset, labels, data.texts, live) if len(live) == len(sample) else (None, None)
    estimator = Estimator.fit(labels, answers.probabilities, index[data.targets()], known)
    words = np.array([row.words for row in sample])
    short, long = np.quantile([len(text.split()) for text in data.val.texts], (0.25, 0.75))
    chosen = {ALL: words >= 0, "short texts": words <= short, "long texts": words >= long}
    probabilities = np.array([row.probabilities for row in sample])
    parts = {
        name: estimator.estimate(probabilities[texts], None if second is None else second[texts])
        for name, texts in chosen.items()
        if texts.sum() >= LEAST_TEXTS
    }
    return LiveQuality(sample[0].at, sample[-1].at, parts)


def _second_opinion(
    dataset: Dataset, labels: tuple[str, ...], known: Sequence[str], live: Sequence[str]
) -> tuple[Indices | None, Indices | None]:
    """Return the baseline's labels of the known and of the live texts; None twice if it cannot learn from the data."""
    train = dataset.train
    if len(set(train.labels).intersection(labels)) < 2:  # there may be no training file
        return None, None
    drawn = random.Random(_SEED).sample(range(len(train.texts)), min(len(train.texts), MOST_LEARNT))
    found = second_opinion(train.at(sorted(drawn)), [*known, *live], labels)
    return found[: len(known)], found[len(known) :]
