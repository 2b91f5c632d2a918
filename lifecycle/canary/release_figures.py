"""Summarises the figures of a release for people."""

from dataclasses import dataclass

from storage.tables import Figures


@dataclass(frozen=True)
class Part:
    """Texts of one kind that both versions classified."""

    name: str
    texts: int
    differ: float
    """Share of the texts to which the versions give different labels."""
    challenger: float
    """Accuracy of the version on trial, estimated from its confidence."""
    champion: float
    """Accuracy of the deployed version, estimated from its confidence."""


def parts_of(figures: Figures) -> list[Part]:
    """Return the figures of all texts and of each length, as far as both versions classified any."""
    return [
        Part(name, part["texts"], *(part[figure] / part["texts"] for figure in ("differ", "challenger", "champion")))
        for name, part in figures.get("parts", {}).items()
    ]


def call_ms(figures: Figures) -> tuple[float, float] | None:
    """Return the mean milliseconds of a call to the version on trial and to the deployed one; None without calls."""
    calls = figures.get("calls", 0)
    return (figures["challenger_ms"] / calls, figures["champion_ms"] / calls) if calls else None
