"""Who is let in: tokens, cookies, roles, pages of other sites, and the headers of every answer."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
import socket
import string
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import TimestampSigner

from common.operators.spec import MaskSpec
from common.settings import Settings
from common.tokens import Role, Tokens, bearer, tokens_for_http
from services.control_plane import guard as guard_module
from services.control_plane import sign_in as sign_in_module
from services.control_plane.app import routed
from services.control_plane.guard import HEALTH, SIGN_IN, Access
from services.control_plane.sign_in import COOKIE, cookie_of, cookies_in, signed_in
from tests.unit.served import BASE, Reader, Served, write_results

OPERATOR, VIEWER = "the-operators-own-token", "the-viewers-own-token"
TOKENS = Tokens(OPERATOR, VIEWER)
CURRENT = f"{BASE}/current"
HTML = {"Accept": "text/html,application/xhtml+xml"}
PREVIEW = f"{CURRENT}/frames/0/preview.png"


def showing(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def with_cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"{COOKIE}={value}"}


class Door:
    """Asks a control plane without a server, as whoever."""

    def __init__(self, tokens: Tokens | None = None, published: str = "", scheme: str = "http") -> None:
        self.app = routed(access=Access(tokens, published))
        self._transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        self._base = f"{scheme}://127.0.0.1:8000"

    def ask(self, method: str, path: str, headers: Any = None, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url=self._base) as client:
                return await client.request(method, path, headers=headers, **options)

        return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "FAILED_SECONDS", 0)


@pytest.fixture(scope="module")
def door() -> Door:
    return Door(TOKENS)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("guard"), tokens=TOKENS)
    served.detector(), served.worker()
    view = served.start()
    write_results(Path(view["output"]), MaskSpec.model_validate(view["specification"]["mask"]))
    yield served
    served.close()


# ---- tokens

NEARLY = {
    "empty": "Bearer ",
    "no scheme": OPERATOR,
    "another scheme": f"Basic {OPERATOR}",
    "truncated": f"Bearer {OPERATOR[:-1]}",
    "longer": f"Bearer {OPERATOR}n",
    "another case": f"Bearer {OPERATOR.upper()}",
    "two words": f"Bearer {OPERATOR} {OPERATOR}",
    "with a comma": f"Bearer x, Bearer {OPERATOR}",
    "quoted": f'Bearer "{OPERATOR}"',
    "both": f"Bearer {OPERATOR}{VIEWER}",
    "base64": "Basic " + base64.b64encode(f"operator:{OPERATOR}".encode()).decode(),
    "not ASCII": "Bearer \xff\xfe",
    "long": "Bearer " + "x" * 50_000,
    "a cookie": f"Bearer {cookie_of(TOKENS, Role.OPERATOR)}",
}


@pytest.mark.parametrize("value", NEARLY.values(), ids=list(NEARLY))
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_wrong_token_is_refused_whatever_it_looks_like(door: Door, method: str, value: str) -> None:
    for path in ("/readyz", BASE, "/", "/metrics", "/none"):
        answer = door.ask(method, path, [(b"authorization", value.encode("latin-1"))])
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == 'Bearer realm="cryoflux"'
        assert OPERATOR not in answer.text


def test_of_two_headers_none_counts(door: Door) -> None:
    right = (b"authorization", f"Bearer {OPERATOR}".encode())
    for headers in ([right, right], [right, (b"authorization", b"")], [(b"authorization", b"x"), right]):
        assert door.ask("GET", "/metrics/targets", headers).status_code == 401


def test_a_wrong_token_beside_a_good_cookie_is_wrong(door: Door) -> None:
    headers = {**showing("x" * 20), **with_cookie(cookie_of(TOKENS, Role.OPERATOR))}
    assert door.ask("GET", "/openapi.json", headers).status_code == 401


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize("token", [OPERATOR, VIEWER])
def test_a_token_lets_in(door: Door, scheme: str, token: str) -> None:
    assert door.ask("GET", "/openapi.json", {"Authorization": f"{scheme} {token}"}).status_code == 200


def test_a_wrong_token_takes_its_time_and_is_told_without_saying_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard_module, "FAILED_SECONDS", 0.3)
    door = Door(TOKENS)
    for method, path, options in (("GET", "/readyz", {}), ("POST", SIGN_IN, {"json": {"token": "y" * 20}})):
        headers = showing("x" * 20) if method == "GET" else {}
        began = time.monotonic()
        assert door.ask(method, path, headers, **options).status_code == 401
        assert time.monotonic() - began >= 0.3
    (line,) = [record.getMessage() for record in caplog.records if "wrong token" in record.getMessage()]
    assert "127.0.0.1" in line
    assert "xxx" not in caplog.text


def test_who_shows_nothing_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Access, "wrong", None)
    assert Door(TOKENS).ask("GET", "/readyz").status_code == 401
    assert Door(TOKENS).ask("GET", "/readyz", with_cookie("old")).status_code == 401


@given(st.lists(st.binary(max_size=60), max_size=3))
def test_reading_a_header_never_fails(values: list[bytes]) -> None:
    token = bearer(values)
    assert (token is None) == (not values)
    if token:
        assert len(values) == 1
        assert token in values[0]
    assert token is None or TOKENS.role_of(token) is None


@given(
    st.text(string.ascii_letters + string.digits + "-._~+/=", min_size=16, max_size=80),
    st.sampled_from(["Bearer", "bearer", "bEaReR"]),
    st.integers(1, 3),
)
def test_a_token_is_read_as_it_was_made(token: str, scheme: str, spaces: int) -> None:
    shown = bearer([f"{scheme}{' ' * spaces}{token}".encode()])
    assert shown == token.encode()
    assert Tokens(token).role_of(shown) is Role.OPERATOR
    assert Tokens("the-other-operators", token).role_of(shown) is Role.VIEWER


@given(st.lists(st.tuples(st.sampled_from([b"authorization", b"cookie", b"host", b"origin", b"accept"]),
                          st.binary(max_size=80)), max_size=6))  # fmt: skip
def test_no_header_is_an_error_inside(headers: list[tuple[bytes, bytes]]) -> None:
    answers: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        answers.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    for method, path in (("GET", "/"), ("POST", BASE), ("POST", SIGN_IN)):
        answers.clear()
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "scheme": "http",
                 "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1), "server": ("x", 1),
                 "root_path": "", "http_version": "1.1"}  # fmt: skip
        asyncio.run(_HYPOTHESIS_DOOR.app(scope, receive, send))
        assert answers[0]["status"] in (401, 403)


_HYPOTHESIS_DOOR = Door(TOKENS)


@pytest.mark.parametrize(
    ("operator", "viewer", "words"),
    [
        ("with a space in it", "", "operator_token: only letters"),
        ("line\nline-line-line", "", "operator_token: only letters"),
        ("ünïcödé-ünïcödé-ü", "", "operator_token: only letters"),
        (OPERATOR, OPERATOR, "viewer_token: it is the operator_token too"),
    ],
)
def test_tokens_that_cannot_be_used_are_refused(operator: str, viewer: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        Tokens(operator, viewer)
    assert "\n" not in str(refused.value)
    assert operator not in str(refused.value)


def test_a_viewers_token_alone_does_not_open_rest() -> None:
    with pytest.raises(ValueError, match="operator_token is needed beside it"):
        tokens_for_http(Settings(viewer_token=VIEWER))


def test_tokens_are_not_shown_by_accident() -> None:
    assert OPERATOR not in repr(TOKENS)
    assert repr(TOKENS) == "Tokens(operator, viewer)"


# ---- roles


def operations() -> list[tuple[str, str, str]]:
    """Method, path and name of every operation."""
    return [
        (method.upper(), path.format(session_id="current", frame_id=0), operation["operationId"])
        for path, methods in routed().openapi()["paths"].items()
        for method, operation in methods.items()
    ]


@pytest.mark.parametrize(("method", "path", "name"), operations())
def test_a_viewer_may_look_and_nothing_else(house: Served, method: str, path: str, name: str) -> None:
    before = [verb for verb, _ in house.fakes[0].commands]
    with httpx.stream(method, house.url + path, headers=showing(VIEWER), timeout=60) as answer:
        if method == "GET" or path == SIGN_IN:
            # the sign-in's body is missing
            assert answer.status_code == (401 if name == "sign_in" else 204 if name == "sign_out" else 200)
        else:
            assert answer.status_code == 403
            assert "operator's" in answer.read().decode()
    assert [verb for verb, _ in house.fakes[0].commands] == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "BREW", "PROPFIND"])
def test_a_viewer_may_use_no_other_method_anywhere(house: Served, method: str) -> None:
    with httpx.Client(base_url=house.url, headers=showing(VIEWER)) as client:
        for path in ("/", "/healthz", BASE, "/none", "/openapi.json", "/console/js/main.js"):
            assert client.request(method, path).status_code == 403


def test_an_operator_is_let_by_everywhere(house: Served) -> None:
    for method, path, name in operations():
        if method == "GET":
            with httpx.stream(method, house.url + path, headers=showing(OPERATOR), timeout=60) as answer:
                assert answer.status_code == 200, name
    answer = house.client.patch(f"{CURRENT}/acquisition", json={"compression_factor": 4})
    assert answer.status_code == 200
    for verb in ("pause", "resume"):
        assert house.client.post(f"{CURRENT}/{verb}").status_code == 200


# ---- cookies


@pytest.mark.parametrize(("token", "role"), [(OPERATOR, "operator"), (VIEWER, "viewer")])
def test_a_browser_signs_in_and_out(house: Served, token: str, role: str) -> None:
    with httpx.Client(base_url=house.url, timeout=60) as client:
        assert client.post(SIGN_IN, json={"token": token}).json() == {"role": role, "needed": True}
        assert COOKIE in client.cookies
        assert client.get(SIGN_IN).json() == {"role": role, "needed": True}
        assert client.get("/readyz").status_code == 200
        assert client.get(PREVIEW).headers["content-type"] == "image/png"
        steered = client.post(f"{CURRENT}/pause")
        assert steered.status_code == (200 if role == "operator" else 403)
        if role == "operator":
            assert client.post(f"{CURRENT}/resume").status_code == 200
        assert client.delete(SIGN_IN).status_code == 204
        assert COOKIE not in client.cookies
        assert client.get("/readyz").status_code == 401


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_cookie_is_for_nobody_else(scheme: str) -> None:
    answer = Door(TOKENS, scheme=scheme).ask("POST", SIGN_IN, json={"token": OPERATOR})
    value, *attributes = answer.headers["set-cookie"].split("; ")
    assert value.startswith(f"{COOKIE}=operator.")
    assert OPERATOR not in value
    expected = {"HttpOnly", "Max-Age=43200", "Path=/", "SameSite=strict"}
    assert set(attributes) == expected | ({"Secure"} if scheme == "https" else set())


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b"{", b'{"token": 1}', b'{"token": ""}', b'{"token": null}',
     b'{"token": "the-operators-own-token", "role": "operator"}', b'{"token": ["the-operators-own-token"]}',
     b'{"token": "\\ud800"}', b'{"token": "' + b"x" * 5000 + b'"}', b"\xff" * 10, b" " * 2_000_000],
)  # fmt: skip
def test_who_signs_in_with_anything_else_is_told_the_same(door: Door, body: bytes) -> None:
    for kind in ("application/json", "text/plain", ""):
        headers = {"Content-Type": kind} if kind else {}
        answer = door.ask("POST", SIGN_IN, headers, content=body)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert OPERATOR not in answer.text


def forged() -> dict[str, str]:
    """Cookies that say *operator*, and were not made by who may say so."""
    viewers = cookie_of(TOKENS, Role.VIEWER)
    _, since, signature = viewers.split(".")
    good = cookie_of(TOKENS, Role.OPERATOR)
    other = Tokens("another-operators-token", "another-viewers-token")

    def signed(key: str, salt: str, digest: Any = hashlib.sha256) -> str:
        return TimestampSigner(key, salt=salt, key_derivation="hmac", digest_method=digest).sign(
            "operator"
        ).decode()  # fmt: skip

    return {
        "empty": "",
        "only the role": "operator",
        "no signature": "operator.abc",
        "viewer's signature": f"operator.{since}.{signature}",
        "signed with the viewer's token": signed(VIEWER, "cryoflux sign-in operator"),
        "signed for the viewer": signed(OPERATOR, "cryoflux sign-in viewer"),
        "of another token": cookie_of(other, Role.OPERATOR),
        "signed with nothing": signed("", "cryoflux sign-in operator"),
        "cut": good[:-1],
        "longer": f"{good}A",
        "another time": good.replace(good.split(".")[1], "AAAAAA"),
        "the token itself": OPERATOR,
        "not ASCII": "\xff.\xfe.\xfd",
        "many dots": "." * 1000,
    }


@pytest.mark.parametrize("name", forged())
def test_a_forged_cookie_lets_nobody_in(door: Door, name: str) -> None:
    value = forged()[name]
    answer = door.ask("GET", "/openapi.json", [(b"cookie", f"{COOKIE}={value}".encode("latin-1"))])
    assert answer.status_code == 401
    assert signed_in(TOKENS, [value]) is None


def test_a_viewers_cookie_stays_a_viewers() -> None:
    found = signed_in(TOKENS, [cookie_of(TOKENS, Role.VIEWER)])
    assert found is not None
    assert found.role is Role.VIEWER


def test_a_cookie_ends_with_the_token_that_signed_it() -> None:
    operators, viewers = (cookie_of(TOKENS, role) for role in (Role.OPERATOR, Role.VIEWER))
    changed = Tokens("the-operators-new-token", VIEWER)
    assert signed_in(changed, [operators]) is None
    assert signed_in(changed, [viewers]) is not None
    assert signed_in(Tokens(OPERATOR), [viewers]) is None
    swapped = Tokens(VIEWER, OPERATOR)
    assert signed_in(swapped, [operators]) is None
    assert signed_in(swapped, [viewers]) is None


def test_a_cookie_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie, now = cookie_of(TOKENS, Role.OPERATOR), time.time()
    for later, valid in ((0, True), (12 * 3600 - 60, True), (12 * 3600 + 60, False), (-3600, False)):
        monkeypatch.setattr("itsdangerous.timed.time.time", lambda later=later: now + later)
        assert (signed_in(TOKENS, [cookie]) is not None) is valid, later


def test_a_cookie_of_another_server_beside_ours_does_no_harm() -> None:
    good = cookie_of(TOKENS, Role.VIEWER)
    header = f"a=b; {COOKIE}=someone-elses; x; {COOKIE}={good};{COOKIE}2=y".encode()
    found = signed_in(TOKENS, cookies_in([header]))
    assert found is not None
    assert found.role is Role.VIEWER


def test_a_stream_ends_with_the_sign_in(house: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    cookie = with_cookie(cookie_of(TOKENS, Role.VIEWER))
    monkeypatch.setattr(sign_in_module, "LASTS_SECONDS", 3)
    with Reader(f"{house.url}{CURRENT}/stream", headers=cookie) as reader:
        reader.until(lambda r: r.of("session"), "the stream tells")
        reader.until(lambda r: r.ended.is_set(), "it ends with the cookie")
    assert reader.broken is None  # told as an end, not cut off
    assert reader.status == 200
    with Reader(f"{house.url}{CURRENT}/stream", headers=cookie) as again:
        again.until(lambda r: r.ended.is_set(), "it is refused")
    assert again.status == 401


@pytest.mark.parametrize("headers", [{}, showing("x" * 20), with_cookie("operator.AAAAAA.x")])
def test_streams_and_pictures_are_not_for_everybody(house: Served, headers: dict[str, str]) -> None:
    for path in (f"{CURRENT}/stream", f"{BASE}/nobody/stream", PREVIEW, f"{CURRENT}/frames/0"):
        for accept in ("*/*", "text/event-stream", "image/png"):
            answer = httpx.get(house.url + path, headers={**headers, "Accept": accept}, timeout=60)
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "application/problem+json"


# ---- without tokens


def test_without_tokens_nobody_has_to_sign_in() -> None:
    door = Door()
    assert door.ask("GET", SIGN_IN).json() == {"role": "operator", "needed": False}
    answer = door.ask("POST", SIGN_IN, json={"token": "whatever-it-is-here"})
    assert answer.json() == {"role": "operator", "needed": False}
    assert "set-cookie" not in answer.headers
    assert door.ask("GET", "/openapi.json", showing("anything")).status_code == 200


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("127.0.0.1:8000", True), ("localhost:8000", True), ("[::1]:8000", True), ("192.0.2.7", True),
        ("console.localhost", True), ("control:8000", True), ("node7", True),
        ("evil.example", False), ("evil.example:8000", False), ("127.0.0.1.evil.example", False),
        ("localhost.evil.example", False), ("evil.", False), ("127.0.0.1, evil.example", False),
        ("[::1].evil.example", False), ("[", False), ("a:b:c.d", False), ("xlocalhost.example", False),
    ],
)  # fmt: skip
def test_without_tokens_a_name_from_elsewhere_is_refused(host: str, here: bool) -> None:
    door = Door()
    for method, path in (("GET", "/openapi.json"), ("GET", "/"), ("DELETE", SIGN_IN)):
        answer = door.ask(method, path, [(b"host", host.encode())])
        assert answer.is_success is here, (method, path)
        if not here:
            assert answer.status_code == 403
            assert "Host" in answer.json()["detail"]
    assert door.ask("GET", HEALTH, [(b"host", host.encode())]).status_code == 200


# ---- pages of others


@pytest.mark.parametrize("tokens", [None, TOKENS])
@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1:8000"}, True),
        ({"Origin": "http://127.0.0.1:8000", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Origin": "https://cryo.example"}, True),  # as it is published
        ({"Origin": "http://127.0.0.1:3000"}, False),
        ({"Origin": "http://localhost:8000"}, False),
        ({"Origin": "http://evil.example"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://127.0.0.1:8000.evil.example"}, False),
        ({"Origin": "http://127.0.0.1:8000@evil.example"}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "Cross-Site", "Origin": "http://127.0.0.1:8000"}, False),
        ({"Sec-Fetch-Site": "anything"}, False),
    ],
)
def test_what_a_page_of_somebody_elses_asks_for_is_refused(
    tokens: Tokens | None, headers: dict[str, str], passes: bool
) -> None:
    door = Door(tokens, published="cryo.example")
    shown = with_cookie(cookie_of(TOKENS, Role.OPERATOR))
    answer = door.ask("DELETE", SIGN_IN, {**shown, **headers})
    assert answer.status_code == (204 if passes else 403)
    answer = door.ask("POST", SIGN_IN, headers, json={"token": OPERATOR})
    assert answer.status_code == (200 if passes else 403)


# ---- what browsers are told


def test_a_browser_is_shown_where_to_sign_in(door: Door) -> None:
    for path in ("/", "/console/index.html", "/api/v1/docs", "/none/of/it", CURRENT):
        for headers in (HTML, {**HTML, **showing("x" * 20)}):
            answer = door.ask("GET", path, headers)
            assert answer.status_code == 401
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["www-authenticate"].startswith("Bearer")
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            for tag in ("script", "style"):
                for part in re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL):
                    digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
                    assert f"'sha256-{digest}'" in policy
    assert door.ask("POST", "/", HTML).headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_answer_has_the_headers_that_bind_browsers(scheme: str) -> None:
    answers = [
        Door(tokens, scheme=scheme).ask(method, path, headers)
        for tokens, headers in ((None, {}), (TOKENS, showing(OPERATOR)), (TOKENS, {}), (TOKENS, HTML))
        for method, path in (
            ("GET", "/"), ("GET", HEALTH), ("GET", "/none"), ("GET", "/openapi.json"),
            ("GET", "/api/v1/docs"), ("GET", "/api/v1/docs-assets/swagger-ui.css"),
            ("GET", "/console/js/main.js"), ("POST", BASE), ("GET", "/readyz"), ("GET", BASE),
            ("TRACE", "/"), ("GET", "/api/v1/sign-in/"),
        )
    ]  # fmt: skip
    # there is nothing behind the routes, so that those which need it fail
    assert {answer.status_code for answer in answers} >= {200, 307, 401, 404, 405, 500}
    for answer in answers:
        headers, policy = answer.headers, answer.headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'none'" in policy or "default-src 'self'" in policy
        assert "access-control-allow-origin" not in headers
        assert headers["cache-control"] in ("no-store", "no-cache")
        assert "strict-transport-security" not in headers


def test_the_page_to_try_calls_out_has_a_policy_for_its_own_script() -> None:
    answer = Door().ask("GET", "/api/v1/docs")
    policy = answer.headers["content-security-policy"]
    (inline,) = re.findall("<script>(.*?)</script>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


# ---- what is counted


def test_refusals_are_counted_and_timed(house: Served) -> None:
    def counts() -> dict[tuple[str, ...], int]:
        return dict(house.app.state.requests.counts)

    before = counts()
    httpx.get(f"{house.url}/readyz", timeout=60)
    httpx.get(f"{house.url}/readyz", headers=showing("x" * 20), timeout=60)
    httpx.post(f"{house.url}{BASE}", headers=showing(VIEWER), timeout=60)
    after = counts()
    assert after["GET", "other", "401"] - before.get(("GET", "other", "401"), 0) == 2
    assert after["POST", "other", "403"] - before.get(("POST", "other", "403"), 0) == 1
    text = house.client.get("/metrics").text
    assert 'cryoflux_http_requests_total{method="GET",route="other",status="401"}' in text
    assert OPERATOR not in text
    assert VIEWER not in text


# ---- what a client library would not send


def answer_of(house: Served, raw: bytes) -> bytes:
    url = httpx.URL(house.url)
    with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
        connection.sendall(raw)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    "target",
    [
        "/healthz/", "//healthz", "/healthz//", "/healthz/.", "/./healthz", "/healthz/../readyz",
        "/healthz%2f..%2freadyz", "/healthz/..%2freadyz", "/healthz;/readyz", "/healthz%00", "/HEALTHZ",
        "/healthz%20", "/healthz/%2e%2e/readyz", "//readyz", "/readyz?/healthz", "/readyz%3f/healthz",
        "/readyz#/healthz", "http://127.0.0.1/healthz", "http://x/healthz/../readyz", "*", "/api/v1/sign-in",
        "/api/v1/sign-in/", "/console/../healthz", "/console/%2e%2e/healthz", "/\\healthz", "/healthz\\..\\x",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_no_spelling_of_a_path_slips_through(house: Served, method: str, target: str) -> None:
    raw = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    answer = answer_of(house, raw)
    assert answer.split(b" ", 2)[1] in (b"401", b"400"), answer[:200]
    assert b"detector" not in answer


def test_an_escaped_spelling_of_the_open_path_is_the_open_path_and_no_more(house: Served) -> None:
    raw = b"GET /%68ealthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert b'"alive"' in answer_of(house, raw)


def test_there_are_no_websockets(house: Served) -> None:
    for path in ("/", HEALTH, f"{CURRENT}/stream"):
        raw = (
            f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        url = httpx.URL(house.url)
        with socket.create_connection((url.host, url.port or 80), timeout=60) as connection:
            connection.sendall(raw.encode())
            status = connection.recv(65536).split(b" ", 2)[1]
        assert status == (b"200" if path == HEALTH else b"401")


def test_a_websocket_is_closed_by_the_guard_itself() -> None:
    told: list[Any] = []

    async def send(message: Any) -> None:
        told.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": HEALTH, "raw_path": b"/healthz", "headers": [], "scheme": "ws",
             "query_string": b"", "subprotocols": [], "root_path": ""}  # fmt: skip
    asyncio.run(Door(TOKENS).app(scope, receive, send))
    assert told == [{"type": "websocket.close", "code": 1008}]
