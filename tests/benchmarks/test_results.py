"""Medians, spreads and ratios are of what was measured, in turns."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.batching import PACKED, PADDED
from benchmarks.results import Case, Figures, Results, measure_in_turns, ratios, rounded, with_spread
from benchmarks.sections import engine, server
from benchmarks.tables import compared


def results(model: str = "packaged") -> Results:
    return Results(model, "a model", machine={}, options={})


def test_cases_take_turns_after_a_warm_up_that_is_not_measured() -> None:
    calls: list[tuple[str, float]] = []

    def case(name: str) -> Case:
        def measure(seconds: float) -> Figures:
            calls.append((name, seconds))
            return {"texts_per_s": float(len(calls))}

        return Case("group", name, measure)

    measured = results()
    measure_in_turns(measured, "section", [case("a"), case("b")], seconds=5, repeats=3, progress=lambda _: None)

    assert calls[:2] == [("a", 1.0), ("b", 1.0)]
    assert calls[2:] == [("a", 5), ("b", 5)] * 3
    assert [item.figures["texts_per_s"] for item in measured.measurements] == [[3, 5, 7], [4, 6, 8]]


def test_a_callable_twice_as_slow_measures_half_as_fast() -> None:
    def sleeping(pause_s: float) -> Case:
        def measure(seconds: float) -> Figures:
            done, started = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - started) < seconds:
                time.sleep(pause_s)
                done += 1
            return {"texts_per_s": done / elapsed}

        return Case("sleeper", f"{pause_s}", measure)

    measured = results()
    measure_in_turns(measured, "section", [sleeping(0.01), sleeping(0.02)], 0.2, repeats=3, progress=lambda _: None)
    fast, slow = measured.measurements
    assert sorted(ratios(fast, slow, "texts_per_s"))[1] == pytest.approx(2, rel=0.3)


def test_spread_is_the_median_with_the_extremes() -> None:
    assert with_spread([1000.0, 1300.4, 1100.2]) == "1,100 (1,000–1,300)"
    assert with_spread([0.5]) == "0.500 (0.500–0.500)"


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (12_345.6, "12,346"), (12.345, "12.3"), (0.01234, "0.012")])
def test_numbers_are_rounded_without_exponents(value: float, text: str) -> None:
    assert rounded(value) == text


@pytest.mark.parametrize("baseline", [server.TRANSFORMERS, server.OPTIMUM, server.LITSERVE])
def test_ratios_are_taken_repeat_by_repeat_of_what_was_measured(baseline: str) -> None:
    measured = results("bert-base")
    gateway = measured.measurement(server.SECTION, server.GATEWAY, server.connections(64))
    others = measured.measurement(server.SECTION, baseline, server.connections(64))
    for ours, theirs in ((100, 10), (300, 15), (160, 10)):
        gateway.add({"texts_per_s": ours})
        others.add({"texts_per_s": theirs})
    [(what, above, below, figure)] = compared(measured)
    assert what == f"gateway ÷ {baseline}, 64 connections"
    assert ratios(above, below, figure) == [10, 20, 16]


def test_two_stages_are_compared_with_one_and_one_with_other_ways() -> None:
    measured = results("base-trained")
    measured.served = "openvino int8"
    for group, packed in (("openvino int8", 300), (engine.ONE_STAGE, 150), ("openvino float32", 75)):
        measured.measurement(engine.SECTION, group, PACKED).add({"texts_per_s": packed})
    measured.measurement(engine.SECTION, "openvino int8", PADDED).add({"texts_per_s": 50})
    found = {what: ratios(above, below, figure) for what, above, below, figure in compared(measured)}
    assert found["two stages ÷ one, reviews"] == [2]
    assert found["packed ÷ padded, reviews (openvino int8)"] == [3]
    assert found["deployed precision ÷ fastest float (openvino int8 ÷ openvino float32)"] == [2]


@pytest.mark.parametrize(
    ("served", "expected"), [("openvino int8", [1.5, 2.0]), ("openvino bfloat16", [1, 1])], ids=["int8", "bfloat16"]
)
def test_deployed_precision_is_compared_with_the_fastest_float(served: str, expected: list[float]) -> None:
    measured = results()
    measured.served = served
    for variant, texts_per_s in {
        "onnxruntime float32": (50.0, 50.0),
        "openvino bfloat16": (100.0, 80.0),
        "openvino int8": (150.0, 160.0),
        "onnxruntime int8": (400.0, 400.0),
    }.items():
        for value in texts_per_s:
            measured.measurement(engine.SECTION, variant, PACKED).add({"texts_per_s": value})
    [(what, above, below, figure)] = compared(measured)
    assert what == f"deployed precision ÷ fastest float ({served} ÷ openvino bfloat16)"
    assert ratios(above, below, figure) == expected


def test_json_keeps_every_repeat(tmp_path: Path) -> None:
    measured = results()
    for value in (3.0, 1.0, 2.0):
        measured.measurement("engine", "runtime", "packed").add({"texts_per_s": value})
    measured.save(tmp_path / "results.json")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["measurements"][0]["figures"] == {"texts_per_s": [3.0, 1.0, 2.0]}
