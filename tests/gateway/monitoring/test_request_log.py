"""What every request gets from the outermost layer: an id, a line of the log or none, a span where it is traced."""

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from common import log_flood, tracing
from common.log_flood import FloodFilter
from gateway.monitoring import request_log
from tests.gateway.conftest import make_app, served, until
from tests.gateway.fake_triton import FakeTriton

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def live(http: httpx.Client, text: str, **headers: str) -> httpx.Response:
    return http.post("/predict/live", json={"text": text}, headers=headers)


def test_every_answer_has_an_id_the_clients_if_it_is_well_formed(http: httpx.Client, triton: FakeTriton) -> None:
    until(lambda: http.get("/health/ready").is_success)
    assert live(http, "one", **{"X-Request-Id": "order-4711"}).headers["x-request-id"] == "order-4711"
    assert triton.request_ids == ["order-4711"]
    made = {live(http, "two").headers["x-request-id"], http.get("/nowhere").headers["x-request-id"]}
    assert len(made) == 2
    for given in ("x" * 65, "a b", "<script>", 'a"b', "é"):
        answer = live(http, "three", **{"X-Request-Id": given.encode()})  # type: ignore[arg-type]
        assert answer.headers["x-request-id"] != given
    assert http.post("/predict/live", content=b"{").headers["x-request-id"]


def test_an_answer_to_an_unexpected_error_has_an_id_too_and_is_counted(
    triton: FakeTriton, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(triton, tmp_path)
    with served(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
        app.context = replace(app.context, predictor=None)  # type: ignore[arg-type]
        answer = live(http, "one", **{"X-Request-Id": "mine"})
        assert answer.status_code == 500
        assert answer.headers["x-request-id"] == "mine"
        assert 'http_response_status_code="500"' in http.get("/metrics").text
    assert "POST /predict/live: 500 after" in caplog.text


def test_only_slow_and_failed_requests_have_a_line(
    http: httpx.Client, triton: FakeTriton, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == request_log.log.name]

    until(lambda: http.get("/health/ready").is_success)
    caplog.set_level(logging.INFO, request_log.log.name)
    caplog.clear()
    live(http, "quick")
    http.get("/nowhere")
    assert lines() == []
    monkeypatch.setattr(request_log, "SLOW_S", 0.05)
    triton.delay_s = 0.1
    live(http, "slow")
    assert [line.partition(" after")[0] for line in lines()] == ["POST /predict/live: 200"]
    caplog.clear()
    with caplog.at_level(logging.DEBUG, request_log.log.name):
        http.get("/%0aforged%1b[31m")
    assert lines()[0].startswith("GET /\\nforged\\x1b[31m: 404 after")


def test_an_outage_does_not_fill_the_log(
    http: httpx.Client, triton: FakeTriton, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == request_log.log.name]

    until(lambda: http.get("/health/ready").is_success)
    triton.error = grpc.StatusCode.UNAVAILABLE
    monkeypatch.setattr(log_flood, "time", SimpleNamespace(monotonic=lambda: 1_000.5))
    monkeypatch.setattr(request_log, "MOST_LINES", 10)
    caplog.handler.addFilter(flood := FloodFilter())  # as on the pipeline's own log
    try:
        for _ in range(13):
            live(http, "failing")
        http.get("/health/live")  # on the same connection: those before are at their end
        assert len(lines()) == 10
        monkeypatch.setattr(log_flood, "time", SimpleNamespace(monotonic=lambda: 1_000.5 + log_flood.PERIOD_S))
        live(http, "failing")
        until(lambda: lines()[-1].endswith(" ms (3 more like this were not logged)"))
    finally:
        caplog.handler.removeFilter(flood)


def test_requests_that_share_a_call_are_all_named_to_triton(http: httpx.Client, triton: FakeTriton) -> None:
    until(lambda: http.get("/health/ready").is_success)
    triton.held = {"first"}
    triton.may_answer.clear()
    asked = [
        threading.Thread(target=live, args=(http, text), kwargs={"X-Request-Id": text})
        for text in ("first", *(f"other-{number}" for number in range(16)))
    ]
    asked[0].start()
    until(lambda: bool(triton.calls))
    for thread in asked[1:]:
        thread.start()
    until(lambda: sum(map(len, triton.calls)) == len(asked))
    triton.may_answer.set()
    for thread in asked:
        thread.join()
    for texts, ids in zip(triton.calls, triton.request_ids, strict=True):
        assert ids.split(",") == texts


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    tracing.send_spans_to(SimpleSpanProcessor(exporter), "test")
    yield exporter
    tracing._tracer = None


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


def test_a_request_is_traced_from_its_client_to_triton(
    http: httpx.Client, triton: FakeTriton, spans: InMemorySpanExporter
) -> None:
    until(lambda: http.get("/health/ready").is_success)
    live(http, "traced", traceparent=TRACEPARENT, **{"X-Request-Id": "mine"})
    until(lambda: bool(named(spans, "POST /predict/live")))
    (request,), (together,), (call,) = (
        named(spans, name) for name in ("POST /predict/live", "answer together", "call model")
    )
    assert f"{request.context.trace_id:032x}" == TRACE
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == "00f067aa0ba902b7"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/predict/live",
        "sentiment.request.id": "mine",
        "http.response.status_code": 200,
    }
    assert together.parent == request.context
    assert call.parent == together.context
    assert triton.traceparents == [f"00-{TRACE}-{call.context.span_id:016x}-01"]
    assert not named(spans, "GET /health/ready")


def test_a_traceparent_that_is_none_begins_a_trace(
    http: httpx.Client, triton: FakeTriton, spans: InMemorySpanExporter
) -> None:
    until(lambda: http.get("/health/ready").is_success)
    for wrong in ("x", "00-0-0-00", f"ff-{TRACE}-00f067aa0ba902b7-01"):
        assert live(http, f"text {wrong}", traceparent=wrong).is_success
    until(lambda: len(named(spans, "POST /predict/live")) == 3)
    assert all(span.parent is None for span in named(spans, "POST /predict/live"))
    assert len(set(triton.traceparents)) == 3


def test_requests_that_share_a_call_are_linked_to_it(
    http: httpx.Client, triton: FakeTriton, spans: InMemorySpanExporter
) -> None:
    until(lambda: http.get("/health/ready").is_success)
    triton.held = {"first"}
    triton.may_answer.clear()
    asked = [threading.Thread(target=live, args=(http, text)) for text in ("first", *("same" for _ in range(5)))]
    asked[0].start()
    until(lambda: bool(triton.calls))
    for thread in asked[1:]:
        thread.start()
    until(lambda: len(triton.calls) > 1)
    triton.may_answer.set()
    for thread in asked:
        thread.join()
    until(lambda: len(named(spans, "POST /predict/live")) == len(asked))
    requests = {span.context.span_id for span in named(spans, "POST /predict/live")}
    served_by = [
        span_id
        for together in named(spans, "answer together")
        for span_id in (
            together.parent.span_id if together.parent else 0,
            *(link.context.span_id for link in together.links),
        )
    ]
    assert sorted(served_by) == sorted(requests), "each request is served by one call"


@pytest.mark.usefixtures("triton")
def test_without_tracing_nothing_of_it_is_sent(http: httpx.Client, triton: FakeTriton) -> None:
    until(lambda: http.get("/health/ready").is_success)
    live(http, "plain", traceparent=TRACEPARENT)
    assert triton.traceparents == [""]
