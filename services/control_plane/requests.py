"""Counts and times requests by their route."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common import metrics

HTTP_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestTimes:
    """How often each route was asked for, with which status, and how long its answer took to begin.

    An event stream goes on for as long as its reader likes, so what is timed is the beginning of the answer.
    Lives on the event loop.
    """

    def __init__(self) -> None:
        self.counts: Counter[metrics.Labels] = Counter()  # by method, route, status
        self.seconds: defaultdict[metrics.Labels, metrics.Distribution] = defaultdict(
            metrics.REQUEST_SECONDS.distribution
        )  # by method, route

    def add(self, scope: Scope, status: int, seconds: float) -> None:
        """A request was answered."""
        template = _template(scope)
        method = scope["method"] if scope["method"] in HTTP_METHODS else metrics.OTHER
        self.counts[method, template, str(status)] += 1
        self.seconds[method, template].observe(seconds)


class TimedRequests:
    """ASGI middleware that fills a ``RequestTimes``."""

    def __init__(self, app: ASGIApp, times: RequestTimes) -> None:
        self._app, self._times = app, times

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note when its answer begins."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, answered = time.perf_counter(), False

        def note(status: int) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._times.add(scope, status, time.perf_counter() - began)

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start":
                note(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            note(500)
            raise


def _template(scope: Scope) -> str:
    """The route's path with its parameters unfilled; a route in a router may know only its own part of it."""
    route = scope.get("route")
    if route is None:
        return metrics.OTHER
    try:
        own = route.path_format.format(**scope["path_params"])
    except (KeyError, IndexError, ValueError):
        return route.path
    return scope["path"].removesuffix(own) + route.path if scope["path"].endswith(own) else route.path
