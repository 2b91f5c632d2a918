"""The results as pictures."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")  # before pyplot: there need be no screen

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from benchmarks.batching import WAYS
from benchmarks.results import Measurement, Results, ratios, rounded
from benchmarks.sections import engine, lengths, server

_OURS, _OTHERS, _LIMIT = "#1f6f8b", "#b8b8b8", "#e0a030"
_PALETTE = ("#1f6f8b", "#e0a030", "#7a9e7e", "#8c6bb1", "#c0504d", "#777777")


def draw(results: Results, directory: Path) -> None:
    """Write a picture for each section that there is something of."""
    for section, plot in ((engine.SECTION, _engine), (server.SECTION, _server), (lengths.SECTION, _lengths)):
        if results.of_section(section):
            figure = plot(results)
            figure.text(0.01, 0.005, _caption(results), fontsize=7, color="#555555")
            figure.savefig(directory / f"{section}.png", dpi=150)
            plt.close(figure)


def _engine(results: Results) -> Figure:
    """Texts a second by way of batching, a bar a variant."""
    items = [item for item in results.of_section(engine.SECTION) if item.name in WAYS]
    groups = [group for group in dict.fromkeys(item.group for item in items) if _has_all_ways(items, group)]
    bars = {group: [_of(items, group, way) for way in WAYS] for group in groups}
    figure, axes = plt.subplots(figsize=(9, 4.2), layout=_layout())
    _grouped_bars(axes, list(WAYS), bars)
    _finish(axes, "Engine in process: texts per second by way of batching, review sentences")
    return figure


def _lengths(results: Results) -> Figure:
    """Texts a second by set of texts, relative to padding, since the sets differ in the work that a text is."""
    items = results.of_section(lengths.SECTION)
    groups = (lengths.ENGINE_PADDED, lengths.ENGINE_PACKED, lengths.GATEWAY)
    by_case = {(item.group, item.name): item for item in items}
    # Of a run that was cut off, only what is complete.
    names = [name for name in lengths.SETS if all((group, name) in by_case for group in groups)]
    bars = {
        group: [ratios(by_case[group, name], by_case[lengths.ENGINE_PADDED, name], "texts_per_s") for name in names]
        for group in (lengths.ENGINE_PACKED, lengths.GATEWAY)
    }
    titles = [f"{name}\n({results.texts[name]['mean_tokens']:.0f} tokens)" for name in names]
    figure, axes = plt.subplots(figsize=(9, 4.2), layout=_layout())
    _grouped_bars(axes, titles, bars)
    axes.axhline(1, color="black", linestyle="--", linewidth=1.2, label=lengths.ENGINE_PADDED)
    axes.legend(frameon=False, fontsize=8)
    _finish(axes, "Texts per second relative to padded batches, by length of the texts (mean)")
    return figure


def _server(results: Results) -> Figure:
    """Left: texts a second of each server under load. Right: latency of a live request by connections."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), layout=_layout(), width_ratios=(3, 2))
    _throughput(left, results)
    _latency(right, results)
    return figure


def _throughput(axes: Axes, results: Results) -> None:
    shown = [
        (server.TRANSFORMERS, server.connections(64), _OTHERS),
        (server.LITSERVE, server.connections(64), _OTHERS),
        (server.GATEWAY, server.connections(64), _OURS),
        (server.GATEWAY_BATCHES, server.connections(8), _OURS),
        (server.TRITON_GRPC, server.streams(4, 64), _OURS),
    ]
    found = [(results.find(server.SECTION, group, name), colour) for group, name, colour in shown]
    items = [(item, colour) for item, colour in found if item is not None]
    labels = [f"{item.group}\n{item.name}" for item, _ in items]
    for position, (item, colour) in enumerate(items):
        values = item.figures["texts_per_s"]
        middle = median(values)
        spread = [[middle - min(values)], [max(values) - middle]]
        axes.barh(position, middle, xerr=spread, color=colour, error_kw={"elinewidth": 1, "capsize": 2})
        place = (max(values), position)
        # On white, for the line of the engine may run through it.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(
            rounded(middle), place, (4, 0), textcoords="offset points", va="center", fontsize=9, bbox=box, zorder=3
        )
    axes.set_yticks(range(len(items)), labels, fontsize=8)
    axes.invert_yaxis()
    in_process = [item for item in results.of_section(server.SECTION) if item.group == server.ENGINE]
    for item in in_process:
        middle = median(item.figures["texts_per_s"])
        axes.axvline(middle, color=_LIMIT, linestyle="--", linewidth=1.2)
        axes.annotate("engine in process", (middle, 1), (-4, 4), xycoords=("data", "axes fraction"),
                      textcoords="offset points", ha="right", fontsize=8, color=_LIMIT)  # fmt: skip
    axes.margins(x=0.12)
    axes.set_title("Texts per second, review sentences", loc="left", fontsize=10, pad=16)
    axes.spines[["top", "right"]].set_visible(False)


def _latency(axes: Axes, results: Results) -> None:
    for number, (group, label) in enumerate(
        (
            (server.GATEWAY, "gateway"),
            (server.LITSERVE, server.LITSERVE.partition(",")[0]),
            (server.TRANSFORMERS, "transformers pipeline"),
        )
    ):
        found = [
            (count, results.find(server.SECTION, group, server.connections(count))) for count in server.CONNECTIONS
        ]
        points = [(count, item) for count, item in found if item is not None]
        if not points:
            continue
        counts = [count for count, _ in points]
        medians = [median(item.figures["p50_ms"]) for _, item in points]
        p99s = [median(item.figures["p99_ms"]) for _, item in points]
        axes.plot(counts, medians, "o-", color=_PALETTE[number], label=label)
        axes.fill_between(counts, medians, p99s, color=_PALETTE[number], alpha=0.2, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(server.CONNECTIONS, [str(count) for count in server.CONNECTIONS])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.set_xlabel("connections", fontsize=8)
    axes.set_title(
        "Latency of one live request, ms:\nmedian, shaded up to the 99th percentile", loc="left", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _grouped_bars(axes: Axes, titles: Sequence[str], bars: dict[str, list[list[float]]]) -> None:
    """Bars with their spread; `bars` has a list of repeats for each title, by the name in the legend."""
    width = 0.8 / max(1, len(bars))
    for number, (name, columns) in enumerate(bars.items()):
        middles = [median(values) for values in columns]
        spread = [
            [middle - min(values) for middle, values in zip(middles, columns, strict=True)],
            [max(values) - middle for middle, values in zip(middles, columns, strict=True)],
        ]
        positions = [place + (number - (len(bars) - 1) / 2) * width for place in range(len(titles))]
        axes.bar(
            positions, middles, width * 0.92, yerr=spread, color=_PALETTE[number % len(_PALETTE)], label=name,
            error_kw={"elinewidth": 1, "capsize": 2},
        )  # fmt: skip
        for position, middle, values in zip(positions, middles, columns, strict=True):
            axes.annotate(
                rounded(middle), (position, max(values)), (0, 3), textcoords="offset points", ha="center", fontsize=8
            )
    axes.set_xticks(range(len(titles)), titles)
    axes.margins(y=0.12)
    axes.legend(frameon=False, fontsize=8)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def _caption(results: Results) -> str:
    machine = results.machine
    sets = ", ".join(machine["instruction_sets"])
    return (
        f"{results.description}.\n{machine['cores']} cores of {machine['processor']} ({sets}). "
        f"Median of {results.options['repeats']} repeats, bars from smallest to largest."
    )


def _layout() -> ConstrainedLayoutEngine:
    """Leaves room for the caption."""
    return ConstrainedLayoutEngine(rect=(0, 0.08, 1, 0.92))


def _has_all_ways(items: Sequence[Measurement], group: str) -> bool:
    return {item.name for item in items if item.group == group} >= set(WAYS)


def _of(items: Sequence[Measurement], group: str, name: str) -> list[float]:
    return next(item.figures["texts_per_s"] for item in items if (item.group, item.name) == (group, name))
