"""Holds the figures against what the design promises, as ratios within one run."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Literal

from benchmarks.batching import PACKED, PADDED
from benchmarks.results import Measurement, Results, ratios
from benchmarks.sections import clients, engine, lengths, overload, retraining, scoring, server, trying
from benchmarks.texts import FLAT_LONG, MIXED
from serving.runtime import INT8

_LIVE_64 = (server.SECTION, server.GATEWAY, server.connections(64))
_LIVE_1 = (server.SECTION, server.GATEWAY, server.connections(1))
_SERVED = (server.SECTION, server.ENGINE, PACKED)

Key = tuple[str, str, str]
"""Section, group and name of a measurement."""


@dataclass(frozen=True)
class Claim:
    """A ratio, repeat by repeat, and what it should be."""

    text: str
    values: list[float]
    bound: Literal["at least", "at most"]
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the median keeps to the limit."""
        middle = median(self.values)
        return middle >= self.limit if self.bound == "at least" else middle <= self.limit


def claims(results: Results) -> list[Claim]:
    """Every claim that this run measured both sides of."""
    return [
        *_of_engine(results),
        *_of_lengths(results),
        *_of_server(results),
        *_of_clients(results),
        *_of_overload(results),
        *_of_retraining(results),
        *_of_trying(results),
        *_of_scoring(results),
    ]


def _of_engine(results: Results) -> Iterator[Claim]:
    packed = [item for item in results.of_section(engine.SECTION) if item.name == PACKED]
    for item in packed:
        padded = results.find(engine.SECTION, item.group, PADDED)
        if padded is not None:
            values = ratios(item, padded, "texts_per_s")
            yield Claim(f"packed ÷ padded, 64 reviews ({item.group})", values, "at least", 2.5)
    served = results.find(engine.SECTION, results.served, PACKED)
    floats = [item for item in packed if not item.group.endswith(INT8)]
    if served and floats:
        fastest = _fastest(floats)
        text = f"best precision ÷ fastest float, packed ({served.group} ÷ {fastest.group})"
        yield Claim(text, ratios(served, fastest, "texts_per_s"), "at least", 1.3)


def _of_lengths(results: Results) -> Iterator[Claim]:
    for kind, limit in ((MIXED, 2.5), (FLAT_LONG, 0.95)):
        packed = (lengths.SECTION, lengths.ENGINE_PACKED, kind)
        padded = (lengths.SECTION, lengths.ENGINE_PADDED, kind)
        text = f"packed ÷ padded, {kind} texts (engine)"
        yield from _ratio(results, text, packed, padded, "texts_per_s", "at least", limit)


def _of_server(results: Results) -> Iterator[Claim]:
    base_size = results.model == "bert-base"
    batches = (server.SECTION, server.GATEWAY_BATCHES, server.connections(8))
    grpc = (server.SECTION, server.TRITON_GRPC, server.streams(4, 64))
    cached = (server.SECTION, server.CACHED, server.connections(64))
    constant = (server.SECTION, server.CONSTANT, server.connections(64))
    per_s: tuple[tuple[str, Key, Key, float], ...] = (
        ("gateway live, 64 connections ÷ engine", _LIVE_64, _SERVED, 0.9 if base_size else 0.75),
        ("gateway, batches of 32 ÷ engine", batches, _SERVED, 0.95),
        ("Triton gRPC, 4 streams of 64 ÷ engine", grpc, _SERVED, 0.95),
        ("gateway ÷ transformers pipeline, 64 connections", _LIVE_64, _baseline(server.TRANSFORMERS, 64), 15),
        ("gateway ÷ LitServe, 64 connections", _LIVE_64, _baseline(server.LITSERVE, 64), 3.5),
        ("cached ÷ constant route, 64 connections", cached, constant, 0.8),
    )
    for text, above, below, limit in per_s:
        yield from _ratio(results, text, above, below, "texts_per_s", "at least", limit)
    for text, baseline, limit in (
        ("gateway ÷ transformers pipeline, median latency at 1 connection", server.TRANSFORMERS, 0.25),
        ("gateway ÷ LitServe, median latency at 1 connection", server.LITSERVE, 1.0),
    ):
        yield from _ratio(results, text, _LIVE_1, _baseline(baseline, 1), "p50_ms", "at most", limit)
    live = results.find(*_LIVE_64)
    if live is not None:
        values = [p99 / p50 for p99, p50 in zip(live.figures["p99_ms"], live.figures["p50_ms"], strict=True)]
        yield Claim("99th percentile ÷ median latency, gateway live, 64 connections", values, "at most", 2.0)


def _of_clients(results: Results) -> Iterator[Claim]:
    in_process = (clients.SECTION, server.ENGINE, PACKED)
    for name in (server.streams(4, 64), clients.LONG_LISTS):
        asked = (clients.SECTION, clients.CLIENT, name)
        yield from _ratio(results, f"client, {name} ÷ engine", asked, in_process, "texts_per_s", "at least", 0.95)


def _of_overload(results: Results) -> Iterator[Claim]:
    found = {item.group: item for item in results.of_section(overload.SECTION)}
    best, flood = found.get(overload.BEST), found.get(overload.OVERLOADED)
    if best is None or flood is None:
        return
    what = f"offered {overload.TIMES:g} times the best"
    yield Claim(f"texts/s ÷ best, {what}", ratios(flood, best, "texts_per_s"), "at least", 0.9)
    memory = [
        second / first
        for first, second in zip(
            flood.figures["memory_first_half_mib"], flood.figures["memory_second_half_mib"], strict=True
        )
    ]
    yield Claim(f"memory in the second half ÷ in the first, {what}", memory, "at most", 1.05)
    for text, figure, limit in (
        ("99th percentile of what is answered, ms", "p99_ms", 1e3 * overload.DEADLINE_S),
        ("99th percentile of what is refused, ms", "refused_p99_ms", 50),
        ("neither answered nor refused", "failed", 0),
        ("seconds until normal again", "normal_after_s", 2),
    ):
        yield Claim(f"{text}, {what}", flood.figures[figure], "at most", limit)


def _of_retraining(results: Results) -> Iterator[Claim]:
    alone = results.find(retraining.SECTION, retraining.GATEWAY, retraining.ALONE)
    steps = [item for item in results.of_section(retraining.SECTION) if item is not alone]
    if alone and steps:
        calm = median(alone.figures["p99_ms"])
        values = [p99 / calm for item in steps for p99 in item.figures["p99_ms"]]
        yield Claim("99th percentile beside a retraining ÷ alone, at half of the best load", values, "at most", 1.5)
        failed = sum(count for item in steps for count in item.figures["failed"])
        yield Claim("requests that fail beside a retraining", [failed], "at most", 0)


def _of_trying(results: Results) -> Iterator[Claim]:
    what = "with a sample and a shadow ÷ without"
    full, half = (
        ((trying.SECTION, trying.TRYING, name), (trying.SECTION, trying.PLAIN, name))
        for name in (trying.FULL, trying.HALF)
    )
    yield from _ratio(results, f"texts/s at 64 connections, {what}", *full, "texts_per_s", "at least", 0.98)
    yield from _ratio(results, f"median latency at half of that, {what}", *half, "p50_ms", "at most", 1.02)


def _of_scoring(results: Results) -> Iterator[Claim]:
    large = (scoring.SECTION, scoring.SCORE, scoring.LARGE)
    in_process = (scoring.SECTION, server.ENGINE, PACKED)
    text = f"{scoring.SCORE} ÷ engine, {scoring.LARGE} as {scoring.SMALL}"
    yield from _ratio(results, text, large, in_process, "texts_per_s", "at least", 0.95)
    few, many = (results.find(scoring.SECTION, scoring.SCORE, name) for name in (scoring.SMALL, scoring.LARGE))
    if few and many:
        more = [b - a for a, b in zip(few.figures["peak_mib"], many.figures["peak_mib"], strict=False)]
        yield Claim(f"MiB more for {scoring.LARGE} as {scoring.SMALL}", more, "at most", 500)
    killed = results.find(scoring.SECTION, scoring.SCORE, scoring.KILLED)
    if killed:
        yield Claim(
            "rows of the output unlike the input's, after three kills", killed.figures["rows_unlike"], "at most", 0
        )


def _ratio(
    results: Results,
    text: str,
    above: Key,
    below: Key,
    figure: str,
    bound: Literal["at least", "at most"],
    limit: float,
) -> Iterator[Claim]:
    first, second = results.find(*above), results.find(*below)
    if first and second:
        yield Claim(text, ratios(first, second, figure), bound, limit)


def _baseline(group: str, count: int) -> Key:
    return server.SECTION, group, server.connections(count)


def _fastest(items: list[Measurement]) -> Measurement:
    return max(items, key=lambda item: median(item.figures["texts_per_s"]))
