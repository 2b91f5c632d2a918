"""OpenTelemetry traces, where they are asked for; otherwise nothing of it is imported, and a span is a no-op.

The SDK reads the usual variables, such as `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`, by itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from errors import PipelineError

if TYPE_CHECKING:  # a program that only has the client needs no settings, and not what they are made with
    from settings import Settings

INSTALL = "pip install opentelemetry-exporter-otlp-proto-http"

_tracer: Any = None
"""OpenTelemetry's, once tracing is on: one a process, as its SDK has it."""


def set_up_tracing(settings: "Settings", service: str) -> None:
    """Send spans of `service` to the collector of the settings, if there is one.

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
    """Where a collector takes traces, by the OTLP specification."""
    return f"{endpoint.rstrip('/')}/v1/traces"


def send_spans_to(processor: Any, service: str) -> None:
    """Turn tracing on; every span that ends goes to `processor`, a span processor of OpenTelemetry's SDK."""
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider

    global _tracer
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: service}))
    provider.add_span_processor(processor)
    _tracer = provider.get_tracer("sentiment")


def is_on() -> bool:
    """Whether spans are made."""
    return _tracer is not None


@contextmanager
def span(
    name: str,
    kind: str = "internal",
    parent: Any = None,
    links: Sequence[Any] = (),
    attributes: Mapping[str, Any] | None = None,
) -> Iterator[Callable[[str, Any], None]]:
    """A span of the block; yields what sets its attributes. An exception that leaves the block is its error.

    `kind` is OpenTelemetry's, in small letters. The span is under `parent`, or else under the current one; `links`
    are other spans that it serves as well. These are told by what `here` or `sent` return. A call (`client`) that
    belongs to no span, as a sign of life does, is none.
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
    """The context of the current span, for others to link to; none where there is none."""
    if _tracer is None:
        return None
    from opentelemetry.trace import get_current_span

    context = get_current_span().get_span_context()
    return context if context.is_valid else None


def sent(traceparent: str) -> Any:
    """The span that a client named in the W3C header of this name; none where it is no such name."""
    if _tracer is None or not traceparent:
        return None
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = get_current_span(TraceContextTextMapPropagator().extract({"traceparent": traceparent})).get_span_context()
    return context if context.is_valid else None


def headers() -> dict[str, str]:
    """`traceparent` of the current span, for whoever is asked next; empty where there is none."""
    if _tracer is None:
        return {}
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier


def current_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of the current span in hexadecimal, as logs want them; empty where there is none."""
    context = here()
    if context is None:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
