"""What is estimated of the answers to live texts, of which nobody has told the right labels."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from errors import PipelineError
from lifecycle.asking import Answers
from lifecycle.estimation import EstimatedQuality, calibrate, estimate
from lifecycle.evaluation_data import EvaluationData
from serving.bundle import Bundle
from serving.repository import ModelRepository
from settings import Settings
from storage.database import Database, now
from storage.sampled_predictions import newest_sample
from storage.tables import Figures, SampledPrediction

MOST_TEXTS = 2_000
"""Of the newest that are in the sample: more would be of longer ago, and make the interval little narrower."""
LONGEST_AGO = timedelta(days=1)
LEAST_TEXTS = 50
"""In fewer texts, or fewer of a part, an estimate says little."""
ALL = "all"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LiveQuality:
    """Estimates for the newest live texts, all of them and parts."""

    since: datetime
    until: datetime
    parts: dict[str, EstimatedQuality]

    @property
    def all(self) -> EstimatedQuality:
        """That of all of the texts."""
        return self.parts[ALL]

    def problems(self, settings: Settings) -> list[str]:
        """What is estimated under a threshold, also at the upper end of its interval; in words."""
        return [
            f"estimated {figure} of {self.all.texts} live texts is {value}, under {least:g}"
            for figure, value, least in (
                ("accuracy", self.all.accuracy, settings.min_accuracy),
                ("macro F1", self.all.macro_f1, settings.min_macro_f1),
            )
            if value.high < least
        ]

    def figures(self) -> Figures:
        """For the result of a check."""
        return {
            "from": self.since.isoformat(timespec="seconds"),
            "to": self.until.isoformat(timespec="seconds"),
            "parts": {name: part.figures() for name, part in self.parts.items()},
        }


def live_sample(database: Database, version: int) -> list[SampledPrediction]:
    """The newest live texts that `version` answered, the oldest of them first."""
    with database.reading() as session:
        since = now(session) - LONGEST_AGO
    return newest_sample(database, MOST_TEXTS, since, version)


def live_quality(
    settings: Settings, answers: Answers, data: EvaluationData, sample: Sequence[SampledPrediction]
) -> LiveQuality | None:
    """Estimate how good the version that gave `answers` to `data` is on a sample of live texts; none where it is small.

    A text that is asked often counts as often: it is what those who ask get.
    """
    if len(sample) < LEAST_TEXTS:
        return None
    repository = ModelRepository(settings.model_repository)
    try:
        labels = Bundle.load(repository.version_directory(answers.version)).labels
    except PipelineError as error:
        log.warning("The quality on live texts cannot be estimated: %s", error)
        return None
    # A label that has come with newer data is none that this version could give.
    index = np.array([labels.index(label) if label in labels else -1 for label in data.labels])
    calibration = calibrate(answers.probabilities, index[data.targets()])
    words = np.array([row.words for row in sample])
    short, long = np.quantile([len(text.split()) for text in data.val.texts], (0.25, 0.75))
    chosen = {ALL: words >= 0, "short texts": words <= short, "long texts": words >= long}
    probabilities = np.array([row.probabilities for row in sample])
    parts = {
        name: estimate(probabilities[texts], labels, calibration)
        for name, texts in chosen.items()
        if texts.sum() >= LEAST_TEXTS
    }
    return LiveQuality(sample[0].at, sample[-1].at, parts)
