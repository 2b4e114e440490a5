"""Traces of a real session at a real collector: one block, one trace, over the processes that it passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from common.tracing import TRACEPARENT, address, start
from common.wire.messages import Frames
from reconstructor.archive import archives, records

pytestmark = pytest.mark.timeout(240)

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

CHAIN = ("acquire", "deliver", "recover", "write", "acknowledge")


class Span(NamedTuple):
    """A span as it came over the wire."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: int
    ended: int
    attributes: dict[str, Any]


class Collector:
    """Takes what OTLP exporters send over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.requests = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                assert self.path == "/v1/traces"
                assert self.headers["content-type"] == "application/x-protobuf"
                collector.take(body)
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        self.requests += 1
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            known = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            assert known["service.namespace"] == "cryoflux"
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {
                        pair.key: getattr(pair.value, pair.value.WhichOneof("value"))
                        for pair in span.attributes
                    }
                    self.spans.append(
                        Span(known["service.name"], span.name, span.trace_id.hex(), span.span_id.hex(),
                             span.parent_span_id.hex(), span.start_time_unix_nano, span.end_time_unix_nano,
                             attributes)
                    )  # fmt: skip


@pytest.fixture
def collector() -> Iterator[Collector]:
    listening = Collector()
    yield listening
    listening.server.shutdown()
    listening.server.server_close()


def session(output: Path, **variables: str) -> dict[str, Any]:
    """Run a whole session; its account."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRYOFLUX_")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "live", "--input", "pattern", "--side", "64",
         "--frames", "120", "--rate", "100", "--workers", "2", "--port", "0", "--recovery", "minimum_norm",
         "--output", str(output)],
        env={**environment, **variables}, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads((output / "session.json").read_text())


def headers(output: Path) -> list[Frames]:
    """Of every block, as the workers got it."""
    return [
        record.message
        for path in archives(output)
        for record in records(path)
        if isinstance(record.message, Frames)
    ]


def test_one_block_is_one_trace_through_all_processes(collector: Collector, tmp_path: Path) -> None:
    account = session(tmp_path / "s", CRYOFLUX_OTLP_ENDPOINT=collector.endpoint)
    sent = {header.block: header for header in headers(tmp_path / "s")}
    traces: dict[str, list[Span]] = defaultdict(list)
    for span in collector.spans:
        traces[span.trace].append(span)
    assert len(traces) == len(sent) > 1
    frames = 0
    for trace, spans in traces.items():
        by_name = {span.name: span for span in spans}
        assert sorted(span.name for span in spans) == sorted(CHAIN), trace
        root = by_name["acquire"]
        assert root.parent == ""
        assert all(span.parent == root.id for span in spans if span is not root)
        services = {name: span.service for name, span in by_name.items()}
        assert services == {
            "acquire": "detector", "deliver": "detector", "acknowledge": "detector",
            "recover": "reconstructor", "write": "reconstructor",
        }  # fmt: skip
        header = sent[root.attributes["cryoflux.block"]]
        parsed = TRACEPARENT.fullmatch(header.trace)
        assert parsed is not None
        assert (parsed["trace"], parsed["span"]) == (trace, root.id)
        for span in spans:
            assert span.attributes["cryoflux.session"] == account["session"]
            assert span.attributes["cryoflux.block"] == header.block
            assert span.attributes["cryoflux.frames"] == len(header.frame_ids)
            assert span.began <= span.ended
        begins = [by_name[name].began for name in CHAIN[:4]]
        assert begins == sorted(begins)
        assert by_name["acknowledge"].ended == max(span.ended for span in spans)
        assert by_name["recover"].attributes["cryoflux.method"] == "minimum_norm"
        frames += len(header.frame_ids)
    assert frames == account["frames"]["acquired"] == 120


def test_a_session_without_an_endpoint_sends_nothing(collector: Collector, tmp_path: Path) -> None:
    session(tmp_path / "s", OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint)
    assert collector.requests == 0
    blocks = headers(tmp_path / "s")
    assert blocks
    assert all(header.trace == "" for header in blocks)


def test_a_collector_that_is_gone_costs_no_frame(tmp_path: Path) -> None:
    account = session(tmp_path / "s", CRYOFLUX_OTLP_ENDPOINT="http://127.0.0.1:9")
    assert (account["frames"]["recovered"], account["frames"]["lost"]) == (120, 0)


def test_without_the_sdk_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert start("http://127.0.0.1:4318", component="detector", name="detector") is None
    assert "cryoflux[tracing]" in caplog.text
    assert len(caplog.records) == 1


def test_the_endpoint_may_say_the_path_or_not() -> None:
    assert address("http://h:4318") == "http://h:4318/v1/traces"
    assert address("http://h:4318/") == "http://h:4318/v1/traces"
    assert address("https://h/otlp/v1/traces") == "https://h/otlp/v1/traces"


@pytest.mark.parametrize("nonsense", ["", "00-zz-00-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01x"])
def test_a_traceparent_that_is_none_makes_no_span(collector: Collector, nonsense: str) -> None:
    tracing = start(collector.endpoint, component="reconstructor", name="w")
    assert tracing is not None
    tracing.add(nonsense, "recover", 1.0, 2.0, {})
    tracing.close()
    assert collector.spans == []
