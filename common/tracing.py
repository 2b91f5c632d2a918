"""OpenTelemetry traces, if they are configured. Otherwise OpenTelemetry is not imported, and spans are no-ops.

The SDK itself reads the usual variables, such as `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common.errors import PipelineError

if TYPE_CHECKING:  # programs that use only the client need neither the settings nor their dependencies
    from common.settings import Settings

INSTALL = "pip install opentelemetry-exporter-otlp-proto-http"

_tracer: Any = None
"""OpenTelemetry's tracer once tracing is on; the SDK has one per process."""


def set_up_tracing(settings: "Settings", service: str) -> None:
    """Send spans of `service` to the collector in the settings, if one is set.

    Raises:
        PipelineError: the exporter is not installed.
    """
    if settings.otlp_endpoint is None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise PipelineError(f"SENTIMENT_OTLP_ENDPOINT needs OpenTelemetry's exporter: {INSTALL}") from error
    exporter = OTLPSpanExporter(endpoint=traces_url(settings.otlp_endpoint))
    send_spans_to(BatchSpanProcessor(exporter), service)


def traces_url(endpoint: str) -> str:
    """Return a collector's URL for traces, by the OTLP specification."""
    return f"{endpoint.rstrip('/')}/v1/traces"


def send_spans_to(processor: Any, service: str) -> None:
    """Turn tracing on, and send ended spans to `processor`, a span processor of OpenTelemetry's SDK."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _tracer
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("sentiment")


def is_on() -> bool:
    """Return whether tracing is on."""
    return _tracer is not None


@contextmanager
def span(
    name: str,
    kind: str = "internal",
    parent: Any = None,
    links: Sequence[Any] = (),
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[str, Any], None]]:
    """Record the block as a span; yield a function that sets its attributes. An exception from the block is its error.

    `kind` is OpenTelemetry's span kind in lower case. The span's parent is `parent`, or else the current span; `links`
    are other spans that it also belongs to. Both are contexts from `here` or `sent`. A `client` span without a current
    span, such as a probe, is not recorded.
    """
    if _tracer is None or (kind == "client" and here() is None):
        yield lambda _name, _value: None
        return
    from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, set_span_in_context

    with _tracer.start_as_current_span(
        name,
        context=None if parent is None else set_span_in_context(NonRecordingSpan(parent)),
        kind=SpanKind[kind.upper()],
        links=[Link(other) for other in links if other is not None],
        attributes=attributes,
    ) as current:
        yield current.set_attribute


def here() -> Any:
    """Return the context of the current span, for links from other spans; None without a current span."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return context if context.is_valid else None


def sent(traceparent: str) -> Any:
    """Return the span context in a client's W3C header `traceparent`; None if the header is invalid."""
    if _tracer is None or not traceparent:
        return None
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": traceparent})).get_span_context()
    return context if context.is_valid else None


def headers() -> dict[str, str]:
    """Return the header `traceparent` of the current span, for outgoing calls; empty without a current span."""
    if _tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def current_ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of the current span in hexadecimal, for logs; empty without a current span."""
    context = here()
    if context is None:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
