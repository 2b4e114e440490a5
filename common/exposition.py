"""Serves a process's metrics to Prometheus, on threads of its own."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from common.metrics import build_info

log = logging.getLogger(__name__)

PATH = "/metrics"
PATIENCE_SECONDS = 10.0
CLOSING_SECONDS = 0.2
EVERYWHERE = ("0.0.0.0", "::", "")


class _Scraped(Collector):
    """What a function gives whenever somebody looks."""

    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        self._collect = collect

    def collect(self) -> Iterable[Family]:
        """The families of now."""
        return self._collect()


def registry_of(*sources: Callable[[], Iterable[Family]]) -> CollectorRegistry:
    """A registry of these sources, the process's own figures (``process_*``), and its version."""
    registry = CollectorRegistry()
    for source in (lambda: [build_info()], *sources):
        registry.register(_Scraped(source))
    ProcessCollector(registry=registry)
    return registry


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """Bind, without asking a name server who we are, as the base class would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # pyright: ignore[reportAttributeAccessIssue]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that went away in the middle is nothing to worry about."""
        log.debug("a scrape from %s broke off", client_address, exc_info=True)


class _Handler(WSGIRequestHandler):
    timeout = PATIENCE_SECONDS  # for the request; who connects and says nothing holds a thread no longer

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not worth a line each."""


class Exposition:
    """``/metrics`` of a process: listens from the beginning, answers once it is served.

    Parameters
    ----------
    host, port
        Where; port 0: any free one.

    Raises
    ------
    OSError
        In one line that says what to do, if that cannot be had.
    """

    def __init__(self, host: str, port: int) -> None:
        where = f"cannot serve {PATH} on {host}:{port}"
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listen_at = (str(address[0]), port)
            server_type = type("_Server", (_Server,), {"address_family": family})
            self._server: WSGIServer = server_type(listen_at, _Handler)
        except socket.gaierror as error:
            hint = "set CRYOFLUX_METRICS_HOST to an address of this machine"
            raise OSError(error.errno, f"{where}: {error.strerror}; {hint}") from error
        except OSError as error:
            hint = "set CRYOFLUX_METRICS_PORT to another port, or 0 for any"
            raise OSError(error.errno, f"{where}: {os.strerror(error.errno or 0)}; {hint}") from error
        self._host = host
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(CLOSING_SECONDS,), name="metrics", daemon=True
        )

    @property
    def port(self) -> int:
        """The port really bound."""
        return self._server.server_port

    @property
    def address(self) -> str:
        """``host:port`` as others reach it: the machine's name where it listens on every interface."""
        host = socket.gethostname() if self._host in EVERYWHERE else self._host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def serve(self, registry: CollectorRegistry) -> None:
        """Answer scrapes with this registry's metrics."""
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            if environ["PATH_INFO"] != PATH:
                start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
                return [f"there is only {PATH}\n".encode()]
            return metrics(environ, start_response)

        self._server.set_app(answer)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
