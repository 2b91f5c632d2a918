"""Computes alarms about a version on trial from the figures of live texts.

Callers can influence all these figures, so no alarm alone takes a version back. Alarms of failures or slowness must
first be confirmed by the pipeline's own measurements. Alarms of worse predictions hold the version until an
administrator decides (`release_steering.py`).

Both versions get the same texts, so that a text that is hard or slow for both cancels out. The figures are evaluated
again and again, and for many parts, so intervals span three standard errors on each side. By chance, a value is beyond
one end of such an interval once in 700 times, and beyond one end of a 95 % interval once in 40.

Shares have Wilson's interval: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
Journal of the American Statistical Association 22, 1927. Accuracy without labels is estimated as in `estimation.py`,
from the confidence of each version on the same texts. Feedback on differing texts is evaluated by the sign test.
"""

import math

from common.settings import Settings
from lifecycle.canary.release_figures import call_ms
from storage.releases import ALL
from storage.tables import Figures

LEAST_TEXTS = 50
"""Minimum number of texts classified by both versions, in total or in a part, for an alarm."""
LEAST_CALLS = 30
LEAST_FAILURES = 5
FAILURES_IN_A_ROW = 20
"""Number of failures without a response between them that raises an alarm, however good the version was before."""
COMPARED_BEFORE = "compared_before_step"
"""Key in the figures: the number of texts that both versions had classified when the step began."""
_ERRORS = 3.0
"""Standard errors on each side of an interval."""
_CHANCE = 0.001
"""Probability that feedback raises an alarm about a version that is as good as the champion."""


def answer_alarms(settings: Settings, champion: int, figures: Figures, feedback: tuple[int, int]) -> list[str]:
    """Return the alarms about the version's predictions, in words with numbers; empty if there are none.

    `feedback` has the number of differing texts on which the champion is right, then that of the challenger.
    """
    parts: dict[str, Figures] = figures.get("parts", {})
    found = [
        *(_disagreement(settings, champion, name, part) for name, part in parts.items()),
        *(_loss(settings, name, part) for name, part in parts.items()),
        _feedback(champion, *feedback),
    ]
    return [alarm for alarm in found if alarm]


def compared(figures: Figures) -> int:
    """Return the number of texts that both versions classified."""
    return int(figures.get("parts", {}).get(ALL, {}).get("texts", 0))


def is_proven(figures: Figures) -> bool:
    """Return whether both versions classified enough texts in this step for an alarm to be possible."""
    return compared(figures) - int(figures.get(COMPARED_BEFORE, 0)) >= LEAST_TEXTS


def error_alarm(settings: Settings, figures: Figures) -> str:
    """Return on how many live texts the version failed, if there are too many; else empty."""
    failed, answered = figures.get("failed", 0), figures.get("answered", 0)
    in_a_row = figures.get("failed_in_a_row", 0)
    if in_a_row >= FAILURES_IN_A_ROW:
        return f"errors: it failed on {in_a_row} texts in a row"
    if failed >= LEAST_FAILURES and _interval(failed, failed + answered)[0] > settings.release_max_errors:
        return f"errors: it failed on {failed} of {failed + answered} texts"
    return ""


def latency_alarm(settings: Settings, figures: Figures) -> str:
    """Return how much longer than the champion the version takes, if it is too much; else empty."""
    calls = figures.get("calls", 0)
    times = call_ms(figures)
    if times is None or calls < LEAST_CALLS or _interval(figures["slower"], calls)[0] <= 0.5:
        return ""
    return (
        f"latency: {figures['slower']} of {calls} calls took over {settings.release_max_slowdown:g} times as long, "
        f"on average {times[0]:.1f} ms instead of {times[1]:.1f} ms"
    )


def _disagreement(settings: Settings, champion: int, name: str, part: Figures) -> str:
    texts, differ = part["texts"], part["differ"]
    if texts < LEAST_TEXTS or _interval(differ, texts)[0] <= settings.release_max_disagreement:
        return ""
    return (
        f"disagreement: {differ:,} of {texts:,} texts ({_lengths(name)}) got another label than from version "
        f"{champion}; the limit is {settings.release_max_disagreement:.1%}"
    )


def _loss(settings: Settings, name: str, part: Figures) -> str:
    texts = part["texts"]
    if texts < LEAST_TEXTS:
        return ""
    gain = (part["challenger"] - part["champion"]) / texts
    deviation = math.sqrt(max(part["squares"] / texts - gain**2, 0) / texts)
    if gain + _ERRORS * deviation >= -settings.release_max_loss:
        return ""
    return (
        f"estimated accuracy: {part['challenger'] / texts:.4f} instead of {part['champion'] / texts:.4f} on "
        f"{texts:,} texts ({_lengths(name)})"
    )


def _feedback(champion: int, champion_right: int, challenger_right: int) -> str:
    texts = champion_right + challenger_right
    if not texts or _sign_test(champion_right, texts) >= _CHANCE:
        return ""
    return (
        f"feedback: of {texts:,} texts with different labels, version {champion} is right on {champion_right}, "
        f"and this version on {challenger_right}"
    )


def _sign_test(right: int, texts: int) -> float:
    """Return the probability that at least `right` of `texts` fair coins show heads."""
    ways = math.lgamma(texts + 1) - texts * math.log(2)
    return math.fsum(
        math.exp(ways - math.lgamma(heads + 1) - math.lgamma(texts - heads + 1)) for heads in range(right, texts + 1)
    )


def _interval(count: int, total: int) -> tuple[float, float]:
    """Return Wilson's interval of a share."""
    share, spread = count / total, _ERRORS**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = _ERRORS / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


def _lengths(name: str) -> str:
    return "of all lengths" if name == ALL else f"of {name}"
