"""Formats the results as Markdown tables."""

from collections.abc import Iterator, Sequence
from statistics import median

from benchmarks.batching import PACKED, PADDED
from benchmarks.results import Measurement, Results, ratios, with_spread
from benchmarks.sections import engine, lengths, overload, server, stages
from serving.model_repo.variants import INT8

SECTIONS = (engine, server, lengths, overload, stages)

_COUNTS = {"failed", "refused"}
_ENGINE = (server.ENGINE, PACKED)
_LIVE_64 = (server.GATEWAY, server.connections(64))
_SERVERS = (
    ("gateway, live, 64 connections ÷ engine", _LIVE_64, _ENGINE, "texts_per_s"),
    ("gateway, lists of 32 ÷ engine", (server.GATEWAY_BATCHES, server.connections(8)), _ENGINE, "texts_per_s"),
    ("Triton over gRPC, 4 streams of 64 ÷ engine", (server.TRITON_GRPC, server.streams(4, 64)), _ENGINE, "texts_per_s"),
    *(
        (f"gateway ÷ {name}, {count}", (server.GATEWAY, count), (name, count), figure)
        for name in (server.GATEWAY_ONE_STAGE, server.TRANSFORMERS, server.OPTIMUM, server.LITSERVE)
        for count, figure in ((server.connections(64), "texts_per_s"), (server.connections(1), "p50_ms"))
    ),
    (
        "known texts ÷ a route that answers a constant",
        (server.CACHED, server.connections(64)),
        (server.CONSTANT, server.connections(64)),
        "texts_per_s",
    ),
)


def markdown(results: Results) -> str:
    """Return the complete report."""
    lines = [f"# Benchmarks: {results.model}", "", f"{results.description}.", "", *_machine(results), ""]
    lines += [*_texts(results), *_ratios(results)]
    for section in SECTIONS:
        # Cases with different figures get separate tables.
        tables: dict[tuple[str, ...], list[Measurement]] = {}
        for item in results.of_section(section.SECTION):
            tables.setdefault(tuple(item.figures), []).append(item)
        if tables:
            lines += [f"## {section.TITLE}", ""]
        for figures, items in tables.items():
            lines += [*_table(figures, items), ""]
    if results.notes:
        lines += ["## Left out", "", *(f"- {note}" for note in results.notes), ""]
    return "\n".join(lines)


def compared(results: Results) -> Iterator[tuple[str, Measurement, Measurement, str]]:
    """Yield the description, the two cases and the figure of each comparison whose cases were measured."""
    packed = {item.group: item for item in results.of_section(engine.SECTION) if item.name == PACKED}
    if results.served in packed and (alone := packed.pop(engine.ONE_STAGE, None)):
        yield "two stages ÷ one, reviews", packed[results.served], alone, "texts_per_s"
        packed[results.served] = alone  # the other comparisons are of one stage
    for group, item in packed.items():
        if padded := results.find(engine.SECTION, group, PADDED):
            yield f"packed ÷ padded, reviews ({group})", item, padded, "texts_per_s"
    floats = [item for group, item in packed.items() if not group.endswith(INT8)]
    if floats and results.served in packed:
        fastest = max(floats, key=lambda item: median(item.figures["texts_per_s"]))
        what = f"deployed precision ÷ fastest float ({results.served} ÷ {fastest.group})"
        yield what, packed[results.served], fastest, "texts_per_s"
    cases = [(server.SECTION, *case) for case in _SERVERS]
    for name in lengths.SETS:
        what = f"packed ÷ padded, {name} texts"
        cases.append(
            (lengths.SECTION, what, (lengths.ENGINE_PACKED, name), (lengths.ENGINE_PADDED, name), "texts_per_s")
        )
    for section, what, above, below, figure in cases:
        first, second = results.find(section, *above), results.find(section, *below)
        if first and second:
            yield what, first, second, figure


def _machine(results: Results) -> Iterator[str]:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"{machine['cores']} cores of {machine['processor']} ({', '.join(machine['instruction_sets'])}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, {machine['date']}, load before the run "
        f"{machine['load_before']}. {versions}."
    )
    yield ""
    options = results.options
    yield (
        f"Each figure is the median of {options['repeats']} repeats of {options['seconds']:g} s, with the smallest and "
        "the largest. The cases of a section were measured in turns; a ratio is taken within each turn."
    )
    if results.served:
        yield ""
        yield f"Deployed is {results.served} ({results.served_because})."


def _texts(results: Results) -> Iterator[str]:
    yield from ("| texts | number | mean, tokens | median | longest |", "|---|---:|---:|---:|---:|")
    for name, lengths_of in results.texts.items():
        numbers = " | ".join(f"{value:,g}" for value in lengths_of.values())
        yield f"| {name} | {numbers} |"
    yield ""


def _ratios(results: Results) -> Iterator[str]:
    found = list(compared(results))
    if found:
        yield from ("## Ratios", "", "| ratio | figure | measured |", "|---|---|---|")
        for what, above, below, figure in found:
            yield f"| {what} | {figure} | {with_spread(ratios(above, below, figure))} |"
        yield ""


def _table(figures: Sequence[str], items: Sequence[Measurement]) -> Iterator[str]:
    yield " | ".join(["| what", "how", *figures]) + " |"
    yield "|---|---|" + "---:|" * len(figures)
    for item in items:
        cells = [_cell(name, item.figures[name]) for name in figures]
        yield " | ".join([f"| {item.group}", item.name, *cells]) + " |"


def _cell(name: str, values: Sequence[float]) -> str:
    return f"{sum(values):,.0f}" if name in _COUNTS else with_spread(values)
