"""The figures of one run: every repeat is kept; medians, spreads and ratios are made of them."""

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Figures = dict[str, float]
"""What one repeat gives, by name; a name ends with its unit (`texts_per_s`, `p99_ms`, `ready_s`)."""

WARM_UP_S = 1.0
"""Longest unmeasured turn of a case before its first measured one."""


@dataclass(frozen=True)
class Case:
    """Something that can be measured again and again."""

    group: str
    """What is measured: a runtime, a server."""
    name: str
    """How it is used: the batching, the number of connections."""
    measure: Callable[[float], Figures]
    """Measures for about as many seconds as it is given."""


@dataclass
class Measurement:
    """A case's figures, a value a repeat."""

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
    """Everything that one run found out about one model."""

    model: str
    description: str
    """What the model is, and what its figures do not say."""
    machine: dict[str, Any]
    options: dict[str, Any]
    texts: dict[str, dict[str, float]] = field(default_factory=dict)
    """By set of texts: how many there are, and their mean, median and longest length in tokens."""
    measurements: list[Measurement] = field(default_factory=list)
    served: str = ""
    """The variant that the pipeline serves on this machine."""
    served_because: str = ""
    notes: list[str] = field(default_factory=list)
    """What was left out, and why."""

    def measurement(self, section: str, group: str, name: str) -> Measurement:
        """The measurement of a case; a new one, without figures, where there is none yet."""
        found = self.find(section, group, name)
        if found is None:
            found = Measurement(section, group, name)
            self.measurements.append(found)
        return found

    def find(self, section: str, group: str, name: str) -> Measurement | None:
        """The measurement of a case, if it was measured."""
        wanted = (section, group, name)
        return next((item for item in self.measurements if (item.section, item.group, item.name) == wanted), None)

    def of_section(self, section: str) -> list[Measurement]:
        """The measurements of a section, in the order in which its cases came."""
        return [item for item in self.measurements if item.section == section]

    def save(self, path: Path) -> None:
        """Write everything as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def measure_in_turns(
    results: Results,
    section: str,
    cases: Sequence[Case],
    seconds: float,
    repeats: int,
    progress: Callable[[str], None],
) -> None:
    """Measure all cases once, then all once more, and so on, and add their figures to `results`.

    In turns, because a machine that gets slower or faster meanwhile then does so for all cases alike, and a
    ratio within one turn stays true. Before the first turn each case runs for a moment without being measured.
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
    """The figures of one repeat, to follow a run by."""
    return ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())


def ratios(above: Measurement, below: Measurement, figure: str) -> list[float]:
    """The ratio of a figure between two cases that were measured in turns, repeat by repeat."""
    # Not strict: a run that was cut off may have one repeat more of one of them.
    return [a / b for a, b in zip(above.figures[figure], below.figures[figure], strict=False)]


def with_spread(values: Iterable[float], digits: int = 3) -> str:
    """The median with the smallest and the largest value, in as many significant digits."""
    ordered = sorted(values)
    middle, least, most = (rounded(value, digits) for value in (statistics.median(ordered), ordered[0], ordered[-1]))
    return f"{middle} ({least}–{most})"


def rounded(value: float, digits: int = 3) -> str:
    """Write a number with as many significant digits, and no exponent."""
    if value == 0:
        return "0"
    places = digits - len(str(int(abs(value)))) if abs(value) >= 1 else digits
    return f"{value:,.{max(0, places)}f}"
