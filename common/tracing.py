"""Traces of blocks on their way through the processes, for OpenTelemetry; off unless an endpoint is set.

Spans are made when what they tell of is over, from times that were taken anyway, so that nothing has to be
carried along and nothing is done where traces are off: ``start`` then gives None. What links the processes is
a W3C ``traceparent`` in the header of each block.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

Attributes = dict[str, str | int | float]

TRACEPARENT = re.compile(r"00-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})")
EXPORT_SECONDS = 5.0  # for one attempt to send spans
QUEUE_SPANS = 8192
EVERY_MS = 1000
FLUSH_MS = 2000


def start(endpoint: str, *, component: str, name: str) -> Tracing | None:
    """Make traces, if there is an endpoint and the SDK is installed; else None, and why in the log.

    Parameters
    ----------
    endpoint : str
        Of a collector that speaks OTLP over HTTP; empty: no traces.
    component, name : str
        Who this process is.
    """
    if not endpoint:
        return None
    try:
        return Tracing.to(endpoint, component=component, name=name)
    except ImportError as error:
        log.warning("otlp_endpoint: no traces are made: %s; pip install 'cryoflux[tracing]'", error)
    except Exception as error:  # an endpoint that cannot be one must not stop a session
        log.warning("otlp_endpoint %s: no traces are made: %s", endpoint, " ".join(str(error).split()))
    return None


class Tracing:
    """Makes spans and has them sent, on a thread of its own; used from any thread.

    Spans that do not fit the queue, or that no collector takes, are lost: nothing waits for them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("cryoflux")

    @classmethod
    def to(cls, endpoint: str, *, component: str, name: str) -> Self:
        """Spans that go to a collector.

        Raises
        ------
        ImportError
            If the SDK is not installed.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create(
            {
                "service.namespace": "cryoflux",
                "service.name": component,
                "service.instance.id": name,
                "service.version": version("cryoflux"),
            }
        )
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=address(endpoint), timeout=EXPORT_SECONDS)
        provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=QUEUE_SPANS, schedule_delay_millis=EVERY_MS)
        )
        return cls(provider)

    def begin(self, name: str, began: float, ended: float, attributes: Attributes) -> str:
        """The first span of a trace; what is to be handed on as ``traceparent``.

        Parameters
        ----------
        began, ended : float
            Unix times, seconds.
        """
        span = self._tracer.start_span(name, start_time=_nanoseconds(began), attributes=attributes)
        span.end(_nanoseconds(ended))
        known = span.get_span_context()
        return f"00-{known.trace_id:032x}-{known.span_id:016x}-{int(known.trace_flags):02x}"

    def add(self, traceparent: str, name: str, began: float, ended: float, attributes: Attributes) -> None:
        """A span of a trace that began elsewhere; nothing where ``traceparent`` is empty or is none."""
        from opentelemetry.trace import (
            NonRecordingSpan,
            SpanContext,
            TraceFlags,
            set_span_in_context,
        )

        parsed = TRACEPARENT.fullmatch(traceparent)
        if parsed is None:
            return
        parent = SpanContext(
            int(parsed["trace"], 16),
            int(parsed["span"], 16),
            is_remote=True,
            trace_flags=TraceFlags(int(parsed["flags"], 16)),
        )
        context = set_span_in_context(NonRecordingSpan(parent))
        self._tracer.start_span(
            name, context=context, start_time=_nanoseconds(began), attributes=attributes
        ).end(_nanoseconds(max(began, ended)))

    def close(self) -> None:
        """Send what is left, if the collector takes it soon."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


def address(endpoint: str) -> str:
    """The address of a collector's traces."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith("/v1/traces") else f"{path}/v1/traces"))


def _nanoseconds(unix_seconds: float) -> int:
    return int(unix_seconds * 1e9)
