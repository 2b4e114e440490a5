"""A real browser at a real installation; a page that complains, or asks elsewhere, fails its test."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.installation import Installation
from tests.conftest import program

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync")  # fmt: skip

AXE = "axe-core@4.10.3"
TELL_VIOLATIONS = """addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));"""

expect.set_options(timeout=30_000)


@pytest.fixture(scope="package")  # while it is open, no test could run an event loop of its own
def browser() -> Iterator[Browser]:
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    program("chromium", "chromium")  # nothing is started where nothing can be shown
    installation = Installation(tmp_path_factory.mktemp("installation"))
    yield installation
    installation.close()


@pytest.fixture
def session(installation: Installation) -> dict[str, Any]:
    """A session that runs: that of the test before where it does, for starting one takes its time."""
    answer = installation.client.get("sessions/current")
    runs = answer.status_code == 200 and answer.json()["state"] == "running"
    return answer.json() if runs else installation.restart()


@pytest.fixture
def fresh(installation: Installation) -> dict[str, Any]:
    """A session that nothing was changed in; to be asked for before the page."""
    return installation.restart()


class Watched:
    """Pages of one test, and what went wrong in them."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser, self._url = browser, url
        self._contexts: list[BrowserContext] = []
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.expected: list[str] = []  # patterns of complaints that belong to what is tested

    def context(self, **options: Any) -> BrowserContext:
        """A browser of its own: no cookie, nothing stored."""
        options = {"viewport": {"width": 1440, "height": 900}, **options}
        context = self._browser.new_context(**options)
        context.add_init_script(TELL_VIOLATIONS)
        self._contexts.append(context)
        return context

    def blank(self, context: BrowserContext | None = None, **options: Any) -> Page:
        """A new page that was nowhere yet."""
        page = (context or self.context(**options)).new_page()
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", self._asked)
        return page

    def at(self, path: str = "/", context: BrowserContext | None = None, **options: Any) -> Page:
        """A new page at an address, whatever that answers."""
        page = self.blank(context, **options)
        page.goto(self._url + path)
        return page

    def open(self, context: BrowserContext | None = None, **options: Any) -> Page:
        """A new page with the console, connected to the stream."""
        page = self.at(context=context, **options)
        expect(page.locator("#link")).to_have_text("live")
        return page

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.text} ({message.location.get('url')})")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self._url + "/", "data:")):
            self.elsewhere.append(request.url)

    def close(self) -> None:
        for context in self._contexts:
            context.close()
        assert self.elsewhere == [], "requests left the origin"
        unexpected = [text for text in self.complaints if not any(re.search(p, text) for p in self.expected)]
        assert unexpected == []


@pytest.fixture
def pages(browser: Browser, installation: Installation) -> Iterator[Watched]:
    watched = Watched(browser, installation.url)
    yield watched
    watched.close()


@pytest.fixture
def page(pages: Watched, session: dict[str, Any]) -> Page:
    """The console of a session that runs."""
    page = pages.open()
    expect(page.locator("#state")).to_have_text("running")
    return page


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, for tests only (MPL-2.0)."""
    folder = tmp_path_factory.mktemp("axe")
    npm = program("npm", "npm")
    subprocess.run([npm, "pack", "--silent", AXE], cwd=folder, check=True, capture_output=True, timeout=120)
    (packed,) = folder.glob("*.tgz")
    subprocess.run(["tar", "xzf", packed.name], cwd=folder, check=True)
    return Path(folder, "package", "axe.min.js").read_text()


@pytest.fixture
def number() -> Callable[[str], float]:
    """A number as the page writes it."""

    def read(text: str) -> float:
        return float(re.sub(r"[^\d.+-]", "", text.replace("\u2212", "-")))

    return read
