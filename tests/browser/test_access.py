"""Signing in, looking on, and a sign-in that ends: a real browser at a control plane that asks for tokens."""

from __future__ import annotations

import http.client
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from itsdangerous import TimestampSigner
from playwright.sync_api import Browser, Page, Request, Route, expect

from common.tokens import Role, Tokens
from services.control_plane.routes.console import FOLDER
from services.control_plane.sign_in import COOKIE, LASTS_SECONDS, cookie_of
from tests.browser.conftest import Watched
from tests.browser.installation import Installation
from tests.browser.looking import PHONE, UNREACHABLE, WIDEST, no_gap_no_duplicate, until, violations
from tests.conftest import program

pytestmark = pytest.mark.timeout(300)

OPERATOR = "operator-of-these-tests+/=~"
VIEWER = "viewer-of-these-tests-0123"
OTHER = "another-operator-of-these-tests"
TOKENS = {"operator_token": OPERATOR, "viewer_token": VIEWER}
NOT_SIGNED_IN = r"status of 401"  # what the browser says of a page or a call without a sign-in, rightly


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with tokens and a session that runs."""
    program("chromium", "chromium")  # nothing is started where nothing can be shown
    installation = Installation(tmp_path_factory.mktemp("guarded"), **TOKENS)
    installation.start(camera={"rate": 20, "reference_every": 10})
    yield installation
    installation.close()


@pytest.fixture
def visits(browser: Browser, guarded: Installation) -> Iterator[Watched]:
    """Pages of that installation."""
    watched = Watched(browser, guarded.url)
    watched.expected.append(NOT_SIGNED_IN)
    yield watched
    watched.close()


def sign_in(page: Page, token: str) -> None:
    """As a user does, on the sign-in page."""
    page.get_by_label("Access token").fill(token)
    page.get_by_label("Access token").press("Enter")


def console_of(page: Page, role: str) -> Page:
    """The page, when it is the console of somebody signed in."""
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#who")).to_have_text(role)
    return page


def is_sign_in(page: Page) -> None:
    """The page is the sign-in page."""
    expect(page.get_by_role("heading", name="Sign in to CryoFlux")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_wrong_token_is_told_and_the_right_one_lets_in(visits: Watched, axe: str, theme: str) -> None:
    page = visits.at(color_scheme=theme)
    is_sign_in(page)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    field, told = page.get_by_label("Access token"), page.get_by_role("alert")
    expect(field).to_be_focused()
    expect(told).to_be_hidden()
    assert violations(page, axe) == []

    page.keyboard.press("Enter")
    expect(told).to_have_text("A token is needed.")
    page.keyboard.type("not-the-token-of-anybody")
    expect(told).to_be_hidden()
    page.keyboard.press("Enter")
    expect(told).to_contain_text("This token is not known here.")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    assert violations(page, axe) == []

    page.keyboard.insert_text(f"  {OPERATOR}\n")  # pasted, in the place of what was selected
    page.keyboard.press("Enter")
    console_of(page, "operator")
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator('[data-view="recovered"] canvas')).to_be_visible()
    assert page.evaluate("document.cookie") == ""  # out of the reach of any script
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert OPERATOR not in cookie["value"]
    assert violations(page, axe) == []


def test_page_that_was_asked_for_comes_after_signing_in(visits: Watched) -> None:
    page = visits.at("/api/v1/docs?of=all#anything")
    is_sign_in(page)
    sign_in(page, VIEWER)
    expect(page).to_have_title(re.compile("Swagger|CryoFlux control plane"))
    expect(page.get_by_text("CryoFlux control plane").first).to_be_visible()
    assert urlsplit(page.url)[2:4] == ("/api/v1/docs", "of=all")
    assert page.goto(page.url.partition("?")[0].replace("api/v1/docs", "metrics")).status == 200


def test_sign_in_page_fits_a_phone(visits: Watched) -> None:
    page = visits.at(**PHONE)
    is_sign_in(page)
    sign_in(page, "wrong" * 20)
    expect(page.get_by_role("alert")).to_contain_text("not known here")
    assert page.evaluate(WIDEST) == [360, []]
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    assert page.evaluate(WIDEST) == [360, []]


def test_viewer_sees_everything_and_changes_nothing(visits: Watched, guarded: Installation, axe: str) -> None:
    page = visits.at()
    sign_in(page, VIEWER)
    console_of(page, "viewer")
    expect(page.locator("#state")).to_have_text("running")
    expect(page.locator('[data-view="reference"] canvas')).to_be_visible()
    until(page, "() => cryoflux.model.series.length >= 2")
    expect(page.locator("#looking")).to_contain_text("You are signed in as viewer")
    for details in page.locator("aside details").all():
        details.evaluate("element => element.open = true")  # what is in force can be read
    controls = page.locator("aside").locator("input, select, button:not(.copy, .link-button)")
    assert controls.count() > 20
    assert [control.get_attribute("id") for control in controls.all() if control.is_enabled()] == []
    expect(page.locator("#control-session .copy").first).to_be_enabled()
    expect(page.locator("#frame-number")).to_be_enabled()  # looking is no change
    assert violations(page, axe) == []

    visits.expected.append(r"status of 403")  # and the control plane would not have it either
    answer = page.evaluate(
        """async () => { const { call } = await import("/console/js/api.js");
        return call({ method: "POST", path: "sessions/current/pause" })
          .catch((problem) => problem.message); }"""
    )
    assert "viewer" in answer
    assert guarded.session()["state"] == "running"

    page.get_by_role("button", name="Sign in as operator").click()
    is_sign_in(page)
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    expect(page.locator("#looking")).to_be_hidden()
    page.locator("#pause").click()
    expect(page.locator("#state")).to_have_text("paused")
    page.locator("#pause").click()
    expect(page.locator("#state")).to_have_text("running")


def test_who_is_made_a_viewer_meanwhile_is_told_in_words(visits: Watched, guarded: Installation) -> None:
    """Somebody signs in as viewer in another tab of the same browser: the cookie is another."""
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    expect(page.locator("#pause")).to_be_enabled()
    answer = page.context.request.post(
        f"{guarded.url}/api/v1/sign-in", data={"token": VIEWER}, headers={"origin": guarded.url}
    )
    assert answer.ok
    visits.expected.append(r"status of 403")
    page.locator("#pause").click()
    expect(page.locator("#control-session .outcome")).to_contain_text("viewer")
    expect(page.locator("#who")).to_have_text("viewer")
    expect(page.locator("#pause")).to_be_disabled()


def test_signing_out_ends_it_in_every_tab(visits: Watched) -> None:
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    other = visits.open(context=page.context)
    expect(other.locator("#sign-out")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    is_sign_in(page)
    expect(page.get_by_role("status")).to_have_text("")  # who signs out knows why
    assert page.context.cookies() == []
    is_sign_in(other)  # its next picture was refused
    expect(other.get_by_role("status")).to_contain_text("The sign-in is over")
    page.reload()
    is_sign_in(page)


def test_changed_token_in_mid_run_leads_to_the_sign_in_and_back(
    visits: Watched, guarded: Installation
) -> None:
    visits.expected.append(UNREACHABLE)
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    until(page, "() => cryoflux.model.series.length >= 3")
    before = no_gap_no_duplicate(page, guarded)
    session = guarded.session()["id"]
    asked: list[str] = []

    def note(request: Request) -> None:
        asked.append(urlsplit(request.url).path)

    guarded.change(operator_token=OTHER, viewer_token=VIEWER)
    is_sign_in(page)
    expect(page.get_by_role("status")).to_contain_text("The sign-in is over")
    assert urlsplit(page.url).path == "/"
    page.on("request", note)
    sign_in(page, OPERATOR)
    expect(page.get_by_role("alert")).to_contain_text("not known here")
    assert asked == ["/api/v1/sign-in"]  # meanwhile it asked for nothing by itself
    sign_in(page, OTHER)
    console_of(page, "operator")
    expect(page.locator("#session-id")).to_have_text(session)
    expect(page.locator("#state")).to_have_text("running")
    until(page, "last => cryoflux.model.points.last >= last + 2", before["last"])
    after = no_gap_no_duplicate(page, guarded)
    assert after["at"][: len(before["at"])] == before["at"]
    expect(page.locator("#account-check")).to_have_text("adds up")
    page.remove_listener("request", note)
    guarded.change(**TOKENS)


def test_sign_in_whose_time_is_up_leads_to_the_sign_in(
    visits: Watched, guarded: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cookie that has twenty of its twelve hours' seconds left: the stream ends with it."""
    begun = int(time.time()) - LASTS_SECONDS + 20
    with monkeypatch.context() as past:
        past.setattr(TimestampSigner, "get_timestamp", lambda signer: begun)
        cookie = cookie_of(Tokens(OPERATOR, VIEWER), Role.OPERATOR)
    context = visits.context()
    context.add_cookies([{"name": COOKIE, "value": cookie, "url": guarded.url}])
    page = visits.open(context=context)
    page.locator("#pause-pictures").click()  # no picture is asked for: it is the stream that ends
    expect(page.get_by_role("status").filter(has_text="The sign-in is over")).to_be_visible(timeout=60_000)
    assert time.time() >= begun + LASTS_SECONDS
    is_sign_in(page)


def test_sign_in_page_that_does_not_come_is_not_asked_for_without_end(
    visits: Watched, guarded: Installation
) -> None:
    """Something between keeps a copy of the console and gives it to everybody."""
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    copy = page.request.get(f"{guarded.url}/").text()
    given: list[str] = []

    def give(route: Route) -> None:
        given.append(route.request.url)
        route.fulfill(body=copy, content_type="text/html")

    page.route(f"{guarded.url}/", give)
    page.route(
        "**/console/**",
        lambda route: route.fulfill(path=FOLDER / route.request.url.partition("/console/")[2]),
    )
    page.context.clear_cookies()
    expect(page.locator('[data-notice="signed-out"]')).to_contain_text("the sign-in page does not come")
    expect(page.locator("#link")).to_have_text("signed out")
    assert given == [f"{guarded.url}/"]  # once


def test_form_is_as_it_was_left_when_a_sign_in_ends(visits: Watched, guarded: Installation) -> None:
    guarded.stop_session()
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    page.locator("#start-open").click()
    page.locator('[data-path="camera.frames"]').fill("77")
    page.context.clear_cookies()
    page.get_by_role("dialog").get_by_role("button", name="Start", exact=True).click()
    is_sign_in(page)
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    dialog = page.get_by_role("dialog", name="Start a session")
    expect(dialog).to_be_visible()
    expect(page.locator('[data-path="camera.frames"]')).to_have_value("77")
    dialog.get_by_role("button", name="Cancel").click()
    page.reload()
    console_of(page, "operator")
    expect(dialog).to_be_hidden()  # once
    page.set_viewport_size(PHONE["viewport"])
    expect(page.locator("#start-open")).to_be_visible()
    assert page.evaluate(WIDEST) == [360, []]

    # a viewer has nothing to start, and reads why
    page.get_by_role("button", name="Sign out").click()
    sign_in(page, VIEWER)
    console_of(page, "viewer")
    expect(page.locator("#start-open")).to_be_disabled()
    expect(page.locator("#start-open")).to_have_attribute("title", "a viewer cannot start a session")
    guarded.start()


def test_token_in_the_fragment_signs_in_and_leaves_no_trace(visits: Watched) -> None:
    page = visits.at(f"/#token={OPERATOR}")
    console_of(page, "operator")
    assert urlsplit(page.url)[2:] == ("/", "", "")
    page.go_back()
    assert page.url == "about:blank"  # one entry, and it has no token
    page.go_forward()
    assert "#" not in page.url

    wrong = visits.at("/#token=not-the-token-of-anybody")
    expect(wrong.get_by_role("alert")).to_contain_text("not known here")
    assert "token" not in wrong.url
    wrong.evaluate("token => { location.hash = `token=${token}`; }", VIEWER)
    console_of(wrong, "viewer")
    assert "token" not in wrong.url

    # who is signed in already becomes who the token says
    wrong.evaluate("token => { location.hash = `token=${encodeURIComponent(token)}`; }", OPERATOR)
    expect(wrong.locator("#who")).to_have_text("operator")
    expect(wrong.locator("#pause")).to_be_enabled()
    assert "token" not in wrong.url
    wrong.evaluate("() => { location.hash = 'token=not-the-token-of-anybody'; }")
    notice = wrong.locator('[data-notice="token"]')
    expect(notice).to_contain_text("is not known here; you go on as operator")
    assert "token" not in wrong.url


def test_link_from_another_site_lets_on_who_is_signed_in(visits: Watched, guarded: Installation) -> None:
    """The browser sends a strict cookie with no link of another site's: the page asks once more itself."""
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    elsewhere = page.context.new_page()
    link = f'<a href="{guarded.url}/">the console</a>'
    elsewhere.route("http://wiki.test/", lambda route: route.fulfill(body=link, content_type="text/html"))
    elsewhere.goto("http://wiki.test/")
    elsewhere.get_by_role("link").click()
    console_of(elsewhere, "operator")


def test_browser_without_cookies_is_told_so(visits: Watched) -> None:
    page = visits.at()

    def drop(route: Route) -> None:
        answer = route.fetch()
        page.context.clear_cookies()
        headers = {name: value for name, value in answer.headers.items() if name != "set-cookie"}
        route.fulfill(response=answer, headers=headers)

    page.route("**/api/v1/sign-in", drop)
    sign_in(page, OPERATOR)
    expect(page.get_by_role("alert")).to_contain_text("keeps no cookie")


def test_line_of_a_control_shows_the_token_by_its_variable(visits: Watched, guarded: Installation) -> None:
    curl = program("curl", "curl")
    page = visits.at()
    sign_in(page, OPERATOR)
    console_of(page, "operator")
    expect(page.locator("#state")).to_have_text("running")
    for state, name in (("paused", "Pause"), ("running", "Resume")):
        expect(page.locator("#pause")).to_have_text(name)
        text = page.locator("#control-session .call code").first.inner_text()
        assert '-H "Authorization: Bearer $CRYOFLUX_TOKEN"' in text
        assert OPERATOR not in page.content()
        command = ["bash", "-c", text.replace("curl", curl, 1)]
        refused = subprocess.run(command, capture_output=True, text=True, check=True, env={})
        assert '"status":401' in refused.stdout
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={"CRYOFLUX_TOKEN": OPERATOR}
        )
        assert f'"{state}"' in done.stdout
        expect(page.locator("#state")).to_have_text(state)


@contextmanager
def proxy(url: str, prefix: str) -> Iterator[str]:
    """A reverse proxy that serves what is at ``url`` under a path; its own address."""
    target = urlsplit(url).netloc

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.close_connection = True
            super().handle_one_request()

        def pass_on(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            connection = http.client.HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path.removeprefix(prefix), body, dict(self.headers.items()))
            answer = connection.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            try:
                while part := answer.read1():
                    self.wfile.write(part)
                    self.wfile.flush()
            except OSError:
                pass  # the page was closed
            connection.close()

        do_GET = do_POST = do_DELETE = do_PATCH = pass_on

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}{prefix}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_it_all_works_behind_a_path_prefix(browser: Browser, guarded: Installation) -> None:
    with proxy(guarded.url, "/microscopes/two") as url:
        watched = Watched(browser, url)
        watched.expected.append(NOT_SIGNED_IN)
        page = watched.at("/api/v1/sessions/current")
        is_sign_in(page)
        sign_in(page, OPERATOR)
        expect(page.locator("body")).to_contain_text('"running"')
        page.goto(f"{url}/")
        console_of(page, "operator")
        until(page, "() => cryoflux.model.series.length >= 2")
        page.get_by_role("button", name="Sign out").click()
        is_sign_in(page)
        assert page.url == f"{url}/"
        watched.close()
