"""Serves a process's metrics to Prometheus on threads of its own; if there are tokens, to who shows one."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from common.metrics import build_info
from common.protection import NotProtected, is_loopback
from common.tokens import CHALLENGE, FAILED_SECONDS, HINT, Tokens, bearer

if TYPE_CHECKING:
    from common.settings import Settings

log = logging.getLogger(__name__)

PATH = "/metrics"
HEALTH = "/healthz"
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


def _nothing(status: str, headers: object, *error: object) -> None:
    """For an answer that is thrown away."""


class Exposition:
    """``/metrics`` of a process: listens from the beginning, answers once it is served.

    Parameters
    ----------
    host, port
        Where; port 0: any free one.
    tokens : Tokens, optional
        One of them is asked for, if there are any.
    unprotected : bool
        Serve beyond loopback without a token too.

    Raises
    ------
    OSError
        In one line that says what to do, if that cannot be had; ``NotProtected`` if it must not.
    """

    def __init__(
        self, host: str, port: int, tokens: Tokens | None = None, *, unprotected: bool = False
    ) -> None:
        self._tokens = tokens or Tokens()
        where = f"cannot serve {PATH} on {host}:{port}"
        if not (self._tokens or unprotected or is_loopback(host)):
            raise NotProtected(
                f"{where}: other machines can reach it: set CRYOFLUX_OPERATOR_TOKEN ({HINT}), or name "
                "'metrics' in CRYOFLUX_UNPROTECTED"
            )
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

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Where and how the settings say; raises as the class does."""
        try:
            tokens = Tokens.of(settings)
        except ValueError as error:
            raise NotProtected(str(error)) from error
        unprotected = "metrics" in settings.unprotected
        return cls(settings.metrics_host, settings.metrics_port, tokens, unprotected=unprotected)

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
        """Answer scrapes with this registry's metrics.

        Whoever shows no token learns only that the process is well: ``/healthz`` answers when the metrics
        could be had.
        """
        metrics = make_wsgi_app(registry)

        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            def say(status: str, line: str, *headers: tuple[str, str]) -> list[bytes]:
                start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
                return [f"{line}\n".encode()]

            path = environ["PATH_INFO"]
            if path == HEALTH and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
                metrics({**environ, "REQUEST_METHOD": "GET", "PATH_INFO": PATH}, _nothing)
                return say("200 OK", "alive")
            if not self._lets_in(environ):
                asking = ("WWW-Authenticate", CHALLENGE)
                return say("401 Unauthorized", "a token is needed: Authorization: Bearer TOKEN", asking)
            if path != PATH:
                return say("404 Not Found", f"there is only {PATH}")
            return metrics(environ, start_response)

        self._server.set_app(answer)
        self._thread.start()

    def _lets_in(self, environ: dict[str, Any]) -> bool:
        if not self._tokens:
            return True
        shown = environ.get("HTTP_AUTHORIZATION")  # of several headers, all of them: no token has a comma
        token = bearer([] if shown is None else [shown.encode("latin-1", "replace")])
        if token is None:
            return False
        if self._tokens.role_of(token) is not None:
            return True
        log.debug("a wrong token was shown for %s by %s", PATH, environ.get("REMOTE_ADDR"))
        time.sleep(FAILED_SECONDS)
        return False

    def close(self) -> None:
        """Stop answering."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
