"""The audit of a first stage: compares both stages on a sample of the texts, and decides whether the first may answer.

A certificate holds for texts of the same kind as those that it rests on; live texts may be of another kind, and may
change. The share of texts whose label differs is therefore watched for as long as the version serves, by an e-detector
(Shin, Ramdas and Rinaldo 2022, arXiv:2203.03532): for several shares over the limit, the likelihood ratio to the limit,
from the time on that gives the largest. While the share is within the limit, the first false alarm comes after ALARM
audited texts on average, or later. After an alarm, the full model answers all texts, until enough of the newest texts
give a new certificate.
"""

import logging
import math
import random
from dataclasses import dataclass, field

import numpy as np

from serving.backend.certificate import least_texts, safest_share
from serving.model_repo.bundle import Certificate

SHARE = 0.02
"""Share of the texts that are audited while there is no suspicion."""
SUSPICIOUS_SHARE = 0.2
"""Share of the texts that are audited at first, after a difference, and while the full model answers all texts."""
SUSPICIOUS_FOR = 50
"""Number of audited texts in a row without a difference after which SHARE of the texts are audited."""
ALARM = 1_000
"""Evidence at which the first stage is turned off: a likelihood ratio, averaged over HIGHER."""
MOST_PENDING = 64
"""Maximum number of texts that wait to be audited. Further ones are not audited, so that a busy engine does no more."""
LEAST_RECERTIFIED = 1_000
"""Minimum number of audited texts for a new certificate."""
LEAST_GAIN = 1.2
"""Minimum speed of both stages relative to the full model; otherwise the first stage is not worth its memory."""
HIGHER = (2, 4, 8, 16, 32)
"""The shares that the test compares with the limit, as multiples of it."""
THRESHOLDS = 1 - np.geomspace(1e-5, 0.5, 100)
"""Thresholds that are tried for a new certificate: set in advance, because no other texts could choose them."""

log = logging.getLogger(__name__)


@dataclass
class Audit:
    """The state of the audit of one version. The caller protects it with a lock."""

    certificate: Certificate
    threshold: float = 0.0
    """Minimum probability of its label at which the first stage answers; infinite while the full model answers all."""
    pending: int = 0
    """Number of audited texts that wait for the other stage."""
    texts: int = 0
    """Number of texts that were audited while the first stage answered."""
    differing: int = 0
    """Number of these that got another label than by the full model."""
    draw: random.Random = field(default_factory=random.Random)
    _evidence: dict[float, float] = field(default_factory=dict)
    """Likelihood ratio of each higher share to the limit, from the time on that gives the largest."""
    _agreed: int = 0
    """Number of audited texts since the last that differed, or since the first stage began to answer."""
    _compared: list[tuple[float, bool]] = field(default_factory=list)
    """While the full model answers all: the first stage's confidence, and whether its label differs."""

    def __post_init__(self) -> None:
        """Begin with the version's own certificate."""
        self._begin(self.certificate.threshold)

    @property
    def is_on(self) -> bool:
        """True while the first stage answers texts that it is sure of."""
        return self.threshold < math.inf

    def chooses(self) -> bool:
        """Return whether the next text is audited. It depends on no property of the text, so that the test is valid."""
        share = SUSPICIOUS_SHARE if not self.is_on or self._agreed < SUSPICIOUS_FOR else SHARE
        return self.draw.random() < share and self.pending < MOST_PENDING

    def add(self, confidence: float, differs: bool) -> None:
        """Record an audited text: the first stage's confidence, and whether its label is not the full model's.

        A text that the first stage did not answer has the full model's label, whatever the first one's would be.
        """
        if not self.is_on:
            self._compared.append((confidence, differs))
            self._try_again()
            return
        is_changed = differs and confidence >= self.threshold
        self.texts += 1
        self.differing += is_changed
        self._agreed = 0 if is_changed else self._agreed + 1
        limit = self.certificate.limit
        for share, so_far in self._evidence.items():
            ratio = share / limit if is_changed else (1 - share) / (1 - limit)
            self._evidence[share] = max(so_far, 1.0) * ratio
        if self._evidence and sum(self._evidence.values()) / len(self._evidence) >= ALARM:
            log.warning(
                "The first stage is off: on the newest texts, it changes the label more often than the limit of %g %% "
                "allows (so far %s of %s audited texts). The full model decides all texts, until a new certificate "
                "holds.",
                100 * limit,
                f"{self.differing:,}",
                f"{self.texts:,}",
            )
            self.threshold = math.inf

    def _begin(self, threshold: float) -> None:
        limit = self.certificate.limit
        self.threshold = threshold
        self._agreed = 0
        self._evidence = {share: 1.0 for multiple in HIGHER if (share := multiple * limit) < 1}

    def _try_again(self) -> None:
        """Look for a new certificate when enough texts were compared; without one, begin with new texts."""
        limit = self.certificate.limit
        if len(self._compared) < max(LEAST_RECERTIFIED, least_texts(limit)):
            return
        confidence, differs = map(np.array, zip(*self._compared, strict=True))
        texts = len(self._compared)
        self._compared.clear()
        risk = safest_share(confidence, differs, THRESHOLDS, limit)
        if risk is None or self._gain(risk.share) < LEAST_GAIN:
            return
        log.warning(
            "The first stage is on again: a new certificate from %s audited texts holds. It decides %.0f %% of the "
            "texts, and with 95 %% confidence at most %.2f %% get another label than by the full model.",
            f"{texts:,}",
            100 * risk.share,
            100 * risk.bound,
        )
        self._begin(risk.threshold)

    def _gain(self, share: float) -> float:
        """Return the expected speed of both stages relative to the full model, if the first decides so many texts.

        A text takes the first stage's time, and the full model's as well if it is not decided. The certificate's own
        gain and share tell the first stage's.
        """
        own = 1 / self.certificate.gain - (1 - self.certificate.share)
        return 1 / max(own + 1 - share, 0.01)
