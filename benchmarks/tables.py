"""The results as Markdown tables."""

from collections.abc import Iterator, Sequence

from benchmarks.claims import claims
from benchmarks.results import Measurement, Results, with_spread
from benchmarks.sections import clients, cold, engine, lengths, overload, retraining, scoring, server, trying

_HEADINGS = {
    "texts_per_s": "texts/s",
    "tokens_per_s": "tokens/s",
    "padding_share": "padding, %",
    "tokenizing_share": "tokenizing, %",
    "packing_share": "packing, %",
    "graph_share": "graph, %",
    "p50_ms": "median, ms",
    "p99_ms": "99th percentile, ms",
    "failed": "failed",
    "generator_cores": "cores of the load generator",
    "ready_s": "seconds",
    "load_s": "seconds to load",
    "answered": "requests answered meanwhile",
    "outlasted_the_requests": "requests ended first",
    "refused": "refused",
    "refused_p99_ms": "99th percentile of refusals, ms",
    "normal_after_s": "normal again after, s",
    "memory_first_half_mib": "most memory in the first half, MiB",
    "memory_second_half_mib": "in the second half",
    "seconds": "seconds",
    "peak_mib": "most memory, MiB",
    "kills": "kills",
    "rows_unlike": "rows unlike the input's",
}
_COUNTS = {"failed", "answered", "outlasted_the_requests", "refused", "kills", "rows_unlike"}


def markdown(results: Results) -> str:
    """The whole report."""
    lines = [f"# Benchmarks: {results.model}", "", f"{results.description}.", "", *_machine(results), ""]
    lines += [*_texts(results), *_claims(results)]
    for section, title in (
        (engine.SECTION, "Engine, in process, reviews"),
        (server.SECTION, "Servers, reviews, every text new"),
        (clients.SECTION, "Clients of Triton's gRPC, reviews, every text new"),
        (lengths.SECTION, "Texts of other lengths, by 64 texts or connections; long and flat-long by 16"),
        (cold.SECTION, "Cold"),
        (overload.SECTION, "Overload, reviews, every text new, offered at a fixed rate"),
        (retraining.SECTION, "Half of the best load, alone and beside a retraining, by its steps"),
        (trying.SECTION, "Live requests without and with a sample of them and a version in the shadow"),
        (scoring.SECTION, "Files, reviews, every text new"),
    ):
        # Cases with other figures make another table.
        tables: dict[tuple[str, ...], list[Measurement]] = {}
        for item in results.of_section(section):
            tables.setdefault(tuple(item.figures), []).append(item)
        if tables:
            lines += [f"## {title}", ""]
        for figures, items in tables.items():
            lines += [*_table(figures, items), ""]
    if results.notes:
        lines += ["## Left out", "", *(f"- {note}" for note in results.notes), ""]
    return "\n".join(lines)


def _machine(results: Results) -> Iterator[str]:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"{machine['cores']} cores of {machine['processor']} ({machine['family']}; "
        f"{', '.join(machine['instruction_sets'])}), {machine['memory_gib']} GiB, {machine['system']}, "
        f"{machine['date']}, load before the run {machine['load_before']}. {versions}."
    )
    yield ""
    options = results.options
    yield (
        f"Each figure is the median of {options['repeats']} repeats of {options['seconds']:g} s, with the smallest and "
        "the largest. The cases of a section were measured in turns; a ratio is taken within each turn."
    )
    if results.served:
        yield ""
        yield f"Served is {results.served} ({results.served_because})."


def _texts(results: Results) -> Iterator[str]:
    yield from ("| texts | number | mean, tokens | median | longest |", "|---|---:|---:|---:|---:|")
    for name, lengths_of in results.texts.items():
        numbers = " | ".join(f"{value:,g}" for value in lengths_of.values())
        yield f"| {name} | {numbers} |"
    yield ""


def _claims(results: Results) -> Iterator[str]:
    found = claims(results)
    if not found:
        return
    yield from ("## Ratios", "", "| ratio | measured | aim | |", "|---|---|---|---|")
    for claim in found:
        kept = "kept" if claim.holds else "**missed**"
        yield f"| {claim.text} | {with_spread(claim.values)} | {claim.bound} {claim.limit:g} | {kept} |"
    yield ""


def _table(figures: Sequence[str], items: Sequence[Measurement]) -> Iterator[str]:
    yield " | ".join(["| what", "how", *(_HEADINGS[name] for name in figures)]) + " |"
    yield "|---|---|" + "---:|" * len(figures)
    for item in items:
        cells = [_cell(name, item.figures[name]) for name in figures]
        yield " | ".join([f"| {item.group}", item.name, *cells]) + " |"


def _cell(name: str, values: Sequence[float]) -> str:
    if name in _COUNTS:
        return f"{sum(values):,.0f}"
    return with_spread([100 * value for value in values] if name.endswith("_share") else values)
