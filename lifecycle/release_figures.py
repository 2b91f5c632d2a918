"""What the figures of a release say of the two versions, for people."""

from dataclasses import dataclass

from storage.tables import Figures


@dataclass(frozen=True)
class Part:
    """Texts of one kind that were put to both versions."""

    name: str
    texts: int
    differ: float
    """Share of them with another label."""
    challenger: float
    """Accuracy, estimated by confidence, of the version that is tried."""
    champion: float
    """The same of the one that serves."""


def parts_of(figures: Figures) -> list[Part]:
    """All texts, and those of each length, as far as some were put to both."""
    return [
        Part(name, part["texts"], *(part[figure] / part["texts"] for figure in ("differ", "challenger", "champion")))
        for name, part in figures.get("parts", {}).items()
    ]


def call_ms(figures: Figures) -> tuple[float, float] | None:
    """Milliseconds of a call on average, of the version that is tried and of the one that serves; none before one."""
    calls = figures.get("calls", 0)
    return (figures["challenger_ms"] / calls, figures["champion_ms"] / calls) if calls else None
