"""What speaks against a version that is tried on live texts, beside the one that serves.

Both are asked for the same texts, so that what makes a text hard or slow for both cancels out. The figures are looked
at again and again, and of many parts, so an interval is of three standard errors: chance leaves it once in 700 times
where a single look would leave one of 95 % once in 40.

Shares have Wilson's interval: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference",
Journal of the American Statistical Association 22, 1927. Accuracy without labels is estimated as in `estimation.py`, by
the confidence of each version on the same texts; feedback on texts that differ is held against chance by the sign test.
"""

import math

from scipy.stats import binomtest

from lifecycle.release_figures import call_ms
from settings import Settings
from storage.releases import ALL
from storage.tables import Figures

LEAST_TEXTS = 50
"""That were put to both versions, or of a part of them, before they tell anything."""
LEAST_CALLS = 30
LEAST_FAILURES = 5
FAILURES_IN_A_ROW = 20
"""Without an answer between them; however good the version was before."""
COMPARED_BEFORE = "compared_before_step"
"""Among the figures, how many texts had been put to both versions when the step began."""
_ERRORS = 3.0
"""Standard errors on each side."""
_CHANCE = 0.001
"""Of feedback that speaks against a version which is as good as the other."""


def alarms(settings: Settings, champion: int, figures: Figures, feedback: tuple[int, int]) -> list[str]:
    """What speaks against it, in words with numbers; empty where nothing does.

    `feedback` is on how many of the texts that differ the champion is right, and on how many the challenger.
    """
    parts: dict[str, Figures] = figures.get("parts", {})
    found = [
        _errors(settings, figures),
        _slowness(settings, figures),
        *(_disagreement(settings, champion, name, part) for name, part in parts.items()),
        *(_loss(settings, name, part) for name, part in parts.items()),
        _feedback(champion, *feedback),
    ]
    return [alarm for alarm in found if alarm]


def compared(figures: Figures) -> int:
    """How many texts were put to both versions."""
    return int(figures.get("parts", {}).get(ALL, {}).get("texts", 0))


def is_proven(figures: Figures) -> bool:
    """Whether, in this step, enough texts were put to both versions that an alarm could have come."""
    return compared(figures) - int(figures.get(COMPARED_BEFORE, 0)) >= LEAST_TEXTS


def _errors(settings: Settings, figures: Figures) -> str:
    failed, answered = figures.get("failed", 0), figures.get("answered", 0)
    in_a_row = figures.get("failed_in_a_row", 0)
    if in_a_row >= FAILURES_IN_A_ROW:
        return f"errors: it failed to answer {in_a_row} texts in a row"
    if failed >= LEAST_FAILURES and _interval(failed, failed + answered)[0] > settings.release_max_errors:
        return f"errors: it failed to answer {failed} of {failed + answered} texts"
    return ""


def _slowness(settings: Settings, figures: Figures) -> str:
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
        f"disagreement: {differ} of {texts} texts ({_told(name)}) got another label than from version {champion}, "
        f"over {settings.release_max_disagreement:.1%}"
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
        f"{texts} texts ({_told(name)})"
    )


def _feedback(champion: int, champion_right: int, challenger_right: int) -> str:
    told = champion_right + challenger_right
    if not told or binomtest(champion_right, told, alternative="greater").pvalue >= _CHANCE:
        return ""
    return (
        f"feedback: of {told} texts that differ, version {champion} is right on {champion_right} "
        f"and it on {challenger_right}"
    )


def _interval(count: int, total: int) -> tuple[float, float]:
    """Wilson's interval of a share."""
    share, spread = count / total, _ERRORS**2 / total
    middle = (share + spread / 2) / (1 + spread)
    half = _ERRORS / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return middle - half, middle + half


def _told(name: str) -> str:
    return "of all lengths" if name == ALL else f"of {name}"
