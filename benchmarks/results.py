"""The figures of one run. All repeats are stored; medians, spreads and ratios are derived from them."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, float]
"""The figures of one repeat by name; a name ends with its unit (`texts_per_s`, `p99_ms`, `ready_s`)."""

WARM_UP_S = 1.0
"""Maximum seconds of a case's warm-up, which is not measured."""


@dataclass(frozen=True)
class Case:
    """A case that can be measured repeatedly."""

    group: str
    """The measured subject: a runtime or a server."""
    name: str
    """Its use: the batching or the number of connections."""
    measure: Callable[[float], Figures]
    """Function that measures for about the given number of seconds."""


@dataclass
class Measurement:
    """A case's figures, with one value per repeat."""

    section: str
    group: str
    name: str
    figures: dict[str, list[float]] = field(default_factory=dict)

    def add(self, figures: Figures) -> None:
        """Add the figures of one more repeat."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)


@dataclass
class Results:
    """All results of one run for one model."""

    model: str
    description: str
    """Description of the model and the limits of its figures."""
    machine: dict[str, Any]
    options: dict[str, Any]
    texts: dict[str, dict[str, float]] = field(default_factory=dict)
    """For each set of texts: the number of texts, and their mean, median and longest length in tokens."""
    measurements: list[Measurement] = field(default_factory=list)
    served: str = ""
    """The variant that the pipeline deploys on this machine."""
    served_because: str = ""
    notes: list[str] = field(default_factory=list)
    """Omitted measurements, with reasons."""

    def measurement(self, section: str, group: str, name: str) -> Measurement:
        """Return the measurement of a case; create it without figures if it does not exist."""
        found = self.find(section, group, name)
        if found is None:
            found = Measurement(section, group, name)
            self.measurements.append(found)
        return found

    def find(self, section: str, group: str, name: str) -> Measurement | None:
        """Return the measurement of a case, or None."""
        wanted = (section, group, name)
        return next((item for item in self.measurements if (item.section, item.group, item.name) == wanted), None)

    def of_section(self, section: str) -> list[Measurement]:
        """Return the measurements of a section, in the order of its cases."""
        return [item for item in self.measurements if item.section == section]

    def save(self, path: Path) -> None:
        """Write all results as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure_in_turns(
    results: Results,
    section: str,
    cases: Sequence[Case],
    seconds: float,
    repeats: int,
    progress: Callable[[str], None],
) -> None:
    """Measure all cases in turn, `repeats` times, and add their figures to `results`.

    If the machine's speed changes meanwhile, it does so for all cases alike, and ratios within one turn stay valid.
    Each case has a short warm-up before the first turn.
    """
    for case in cases:
        progress(f"{section}, warm-up: {case.group}, {case.name}")
        case.measure(min(WARM_UP_S, seconds))
    for repeat in range(repeats):
        for case in cases:
            figures = case.measure(seconds)
            results.measurement(section, case.group, case.name).add(figures)
            progress(f"{section}, {repeat + 1}/{repeats}: {case.group}, {case.name}: {in_a_line(figures)}")


def in_a_line(figures: Figures) -> str:
    """Format the figures of one repeat for progress messages."""
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())


def ratios(above: Measurement, below: Measurement, figure: str) -> list[float]:
    """Return the ratios of a figure between two cases that were measured in turn, one per repeat."""
    # Not strict: after an interrupted run, one case may have one repeat more.
    return [a / b for a, b in zip(above.figures[figure], below.figures[figure], strict=False)]


def with_spread(values: Iterable[float], digits: int = 3) -> str:
    """Format the median with the smallest and largest value, each with `digits` significant digits."""
    ordered = sorted(values)
    middle, least, most = (rounded(value, digits) for value in (statistics.median(ordered), ordered[0], ordered[-1]))
    return f"{middle} ({least}–{most})"


def rounded(value: float, digits: int = 3) -> str:
    """Format a number with `digits` significant digits and no exponent."""
    if value == 0:
        return "0"
    places = digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits
    return f"{value:,.{max(0, places)}f}"
