"""Who is let in: stands in front of every route, file and error, and lets nothing by that it does not know.

With tokens, whoever shows none is answered 401 whatever the path is, but for ``/healthz`` and the sign-in. A
viewer may only look. Without tokens, which is possible on loopback alone, everybody is the operator, and only
requests are refused that somebody else's page has a browser on this machine make.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.tokens import CHALLENGE, FAILED_SECONDS, Role, Tokens, bearer
from services.control_plane.problems import problem
from services.control_plane.sign_in import SignedIn, cookies_in, left, signed_in
from services.control_plane.sign_in_page import MEDIA_TYPE as PAGE_TYPE
from services.control_plane.sign_in_page import sign_in_page, sign_in_policy

log = logging.getLogger(__name__)

HEALTH = "/healthz"
SIGN_IN = "/api/v1/sign-in"
LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
ASKING = {"WWW-Authenticate": CHALLENGE}
ADDRESS = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9a-f:.]+\]|[^\s:/@,\[\]]+)(?::(?P<port>[0-9]+))?"
)
USUAL_PORTS = {"http": ("80",), "https": ("443",), None: ("80", "443")}
REMARK_SECONDS = 10.0  # at least, between two lines of wrong tokens

NO_TOKEN = "a token is needed: Authorization: Bearer TOKEN, or sign in at the console"
WRONG_TOKEN = "the token is not one of this control plane's"
ONLY_VIEWER = "the viewer's token lets you look, not change anything; that takes the operator's"


class Access:
    """Who may come in, and how often somebody tried with a wrong token.

    Parameters
    ----------
    published : str
        Host under which the control plane is reached besides the one in a request's ``Host``.
    """

    def __init__(self, tokens: Tokens | None = None, published: str = "") -> None:
        self.tokens, self.published = tokens or Tokens(), _netloc(published)
        self._unsaid, self._said_at = 0, -REMARK_SECONDS

    async def wrong(self, scope: Mapping[str, Any]) -> None:
        """Somebody showed a wrong token: it is noted, and takes a while."""
        self._unsaid += 1
        now = time.monotonic()
        if now - self._said_at >= REMARK_SECONDS:
            host, more = (scope.get("client") or ("?",))[0], self._unsaid - 1
            log.warning("a wrong token was shown by %s%s", host, f", and {more} before it" if more else "")
            self._unsaid, self._said_at = 0, now
        await asyncio.sleep(FAILED_SECONDS)


class Guard:
    """ASGI middleware that lets in who may come in; denies by default."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request by, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)
        elif scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path, tokens = scope["method"], scope["path"], self._access.tokens
        who: SignedIn | None = None
        if path == HEALTH and method in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        if not tokens:
            role = Role.OPERATOR
            if not _is_here(_header(scope, b"host")):
                await self._refuse(
                    scope, receive, send, HTTPStatus.FORBIDDEN,
                    "without tokens this control plane answers to this machine's own addresses only, not to "
                    "the name in Host; see docs/security.md",
                )  # fmt: skip
                return
        else:
            shown = bearer(_headers(scope, b"authorization"))
            if shown is not None:
                role = tokens.role_of(shown)
                if role is None:
                    await self._access.wrong(scope)
                    await self._refuse(scope, receive, send, HTTPStatus.UNAUTHORIZED, WRONG_TOKEN)
                    return
            else:
                who = signed_in(tokens, cookies_in(_headers(scope, b"cookie")))
                role = who.role if who is not None else None
            if role is None and not (method == "POST" and path == SIGN_IN):
                await self._refuse(scope, receive, send, HTTPStatus.UNAUTHORIZED, NO_TOKEN)
                return
        if method not in LOOKING:
            if foreign := self._foreign(scope):
                await self._refuse(scope, receive, send, HTTPStatus.FORBIDDEN, foreign)
                return
            if role is not Role.OPERATOR and path != SIGN_IN:
                await self._refuse(scope, receive, send, HTTPStatus.FORBIDDEN, ONLY_VIEWER)
                return
        scope.setdefault("state", {})["role"] = role
        if who is not None and method in LOOKING:
            await self._until(who.until, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _until(self, until: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, but not for longer than the sign-in lasts: streams have no end of their own."""
        begun = ended = False

        async def watch(message: Message) -> None:
            nonlocal begun, ended
            begun = begun or message["type"] == "http.response.start"
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body", False))
            await send(message)

        limit = asyncio.timeout(left(until))
        try:
            async with limit:
                await self._app(scope, receive, watch)
        except TimeoutError:
            if not limit.expired():
                raise
            if not begun:
                await self._refuse(scope, receive, send, HTTPStatus.UNAUTHORIZED, NO_TOKEN)
            elif not ended:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, status: HTTPStatus, why: str) -> None:
        headers: Mapping[str, str] = ASKING if status is HTTPStatus.UNAUTHORIZED else {}
        if (
            status is HTTPStatus.UNAUTHORIZED
            and scope["method"] in ("GET", "HEAD")
            and _wants_page(_headers(scope, b"accept"))
        ):
            raw = scope.get("raw_path") or b"/"
            answer = Response(
                sign_in_page(raw.decode("latin-1")),
                status,
                {**headers, "Content-Security-Policy": sign_in_policy(), "Vary": "Accept"},
                PAGE_TYPE,
            )
        else:
            answer = problem(status, why, headers=headers)
        await answer(scope, receive, send)

    def _foreign(self, scope: Scope) -> str:
        """Why a request that would change something is taken for one of another site's page, if it is."""
        site = _header(scope, b"sec-fetch-site").lower()
        if site not in ("", "same-origin", "none"):
            return f"a page of another site asked for this (Sec-Fetch-Site: {site[:20]})"
        origins = _headers(scope, b"origin")
        if not origins:
            return ""
        own = {_netloc(_header(scope, b"host")), self._access.published} - {""}
        if len(origins) > 1 or _netloc(origins[0].decode("latin-1")) not in own:
            return "Origin is not the host that was asked; a proxy has to pass Host on, see docs/security.md"
        return ""


def _headers(scope: Mapping[str, Any], name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _header(scope: Mapping[str, Any], name: bytes) -> str:
    """The value of a header; of several, all of them, which is no good value of any header asked for here."""
    return b",".join(_headers(scope, name)).decode("latin-1").strip()


def _wants_page(accept: list[bytes]) -> bool:
    kinds = b",".join(accept).decode("latin-1").lower().split(",")
    return any(kind.partition(";")[0].strip() == "text/html" for kind in kinds)


def _netloc(address: str) -> str:
    """``host:port`` of an origin or a ``Host``, without the port of its scheme; empty: it is none."""
    found = ADDRESS.fullmatch(address.lower())
    if found is None:
        return ""
    scheme, host, port = found.groups()
    return host if port in (None, *USUAL_PORTS[scheme]) else f"{host}:{port}"


def _is_here(host: str) -> bool:
    """Whether a ``Host`` is an address, or a name that no name server elsewhere could point at this machine.

    A page of somebody else's whose name is made to point to 127.0.0.1 would otherwise be on our own site.
    """
    if not host:
        return True  # no browser
    found = ADDRESS.fullmatch(host.lower())
    if found is None or found["scheme"]:
        return False
    name = found["host"].strip("[]")
    if "." not in name and ":" not in name:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name.endswith(".localhost")
    return True
