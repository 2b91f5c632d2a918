"""What a soak found, as tables and as a picture."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from tests.e2e.soak.watching import MEMORY, Sample, Trend, by_minute

_ROWS = 15


def table_over_time(samples: Sequence[Sample]) -> str:
    """About fifteen of the minutes, each with all figures."""
    minutes = by_minute(samples)
    names = list(minutes[0].figures)
    rows = [
        [f"{sample.second / 60:.0f}", *(f"{sample.figures[name]:.1f}".removesuffix(".0") for name in names)]
        for sample in minutes[:: max(1, len(minutes) // _ROWS)]
    ]
    return _markdown(["minute", *names], rows)


def table_of_trends(found: Sequence[Trend]) -> str:
    """Each figure at the beginning and at the end, and whether it grows."""
    rows = [
        [
            trend.name,
            f"{trend.first:.1f}",
            f"{trend.last:.1f}",
            f"{trend.growth:+.2f}",
            f"{trend.allowed:.1f}",
            "growing" if trend.is_growing else "flat",
        ]
        for trend in found
    ]
    return _markdown(["", "first fifth", "last fifth", "growth by the slope", "allowed", ""], rows)


def draw(samples: Sequence[Sample], promotions: Sequence[float], path: Path) -> None:
    """The memory of each process over time, with the promotions as ticks."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name in [name for name in samples[0].figures if name.endswith(MEMORY)]:
        axes.plot(
            [sample.second / 60 for sample in samples],
            [sample.figures.get(name, float("nan")) for sample in samples],
            label=name.removesuffix(f" {MEMORY}"),
            linewidth=1.2,
        )
    axes.plot([second / 60 for second in promotions], [0] * len(promotions), "|", color="gray", label="promotion")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("minutes")
    axes.set_title("Memory of its own (USS), MiB", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    figure.savefig(path, dpi=120)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
